package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/ledger"
)

// storeAdvice is about the ledger of the token service.
var storeAdvice = map[string]finding.Advice{
	"memory":   {Means: "what was sent is forgotten when the token service ends, and Microsoft's limits may be crossed after a restart", Do: "write store: bolt:FILE below token: in sendas.yaml, or remove the line"},
	"absent":   {Means: "the token service has not run yet, or keeps its ledger elsewhere", Do: "systemctl start sendas-token"},
	"folder":   {Means: "this user may not look", Do: "run this as root"},
	"away":     {Means: "while the store is away, this host keeps to its share of the limits, and mail waits longer", Do: "look at the server: redis-cli ping; its address is token.store in sendas.yaml"},
	"password": {Means: "the store asks for another user or password", Do: "compare store_password_file, and the user in token.store, in sendas.yaml with requirepass or the user of the server (acl list), and restart sendas-token"},
	"file":     {Means: "the token service cannot log in to the store", Do: "mend the file; token.store_password_file in sendas.yaml names it"},
	"evicts":   {Means: "when its memory is full, the server throws away what was counted, and Microsoft's limits are crossed", Do: "redis-cli config set maxmemory-policy noeviction, and the same in redis.conf"},
	"volatile": {Means: "when the server restarts, what was sent in the last day is gone: each host books its own part anew, and mail waits until all have", Do: "redis-cli config set appendonly yes, and the same in redis.conf"},
	"replicas": {Means: "a master that is cut off goes on giving leases beside the one that takes its place, and Microsoft's limits are crossed",
		Do: "redis-cli config set min-replicas-to-write 1, and the same in redis.conf, on every server; a server takes nothing then while no replica follows it, so let there be two"},
	"follows": {Means: "there is nobody to take the place of this server when it fails: mail then leaves by each host's share of the limits", Do: "look at the replicas: redis-cli info replication"},
	"slow":    {Means: "each message costs two questions to the store", Do: "put the server nearer to this host"},
	"plain":   {Means: "addresses of mailboxes, and the password, cross the network in the clear", Do: "write rediss:// in token.store, and give the server a certificate (tls-port in redis.conf)"},
}

// slowStore is a round trip that is no neighbour's.
const slowStore = 50 * time.Millisecond

// checkStore looks at where the token service keeps what it counts.
func (d *Walk) checkStore(ctx context.Context) {
	s := d.Section("store", "ledger")
	c := d.config
	if c == nil {
		s.Skip("kind", "token.store", "there is no usable configuration")
		return
	}
	store := c.Token.StoreOf()
	switch {
	case store.Shared():
		d.checkRedis(ctx, s, c, &store)
	case store.File() == "":
		s.Warn("kind", "token.store", "in memory", storeAdvice["memory"])
	default:
		checkLedgerFile(s, store.File())
	}
}

func checkLedgerFile(s finding.Section, file string) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Warn("file", file, "is not there", storeAdvice["absent"])
	case err != nil:
		s.Warn("file", file, rootCause(err), storeAdvice["folder"])
	default:
		s.Ok("file", file, "%d kB, last written %s", (info.Size()+1023)/1024, info.ModTime().UTC().Format(time.RFC3339))
	}
}

// checkRedis asks the store that hosts share.
func (d *Walk) checkRedis(ctx context.Context, s finding.Section, c *config.Site, store *config.Store) {
	name := store.Name()
	r, err := store.Ledger(c)
	if err != nil {
		s.Fail("password", name, err.Error(), storeAdvice["file"])
		return
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(ctx, socketTime)
	defer cancel()
	h, err := r.Health(ctx)
	switch {
	case err != nil && h.Locked:
		s.Fail("server", name, "refuses the password", storeAdvice["password"])
		return
	case err != nil && h.RoundTrip == 0:
		s.Fail("server", name, err.Error(), storeAdvice["away"])
		return
	case err != nil:
		s.Skip("server", name, "%v", err)
		return
	}
	s.Ok("server", name, "version %s, shared by %d hosts", h.Version, store.Hosts)
	if h.Eviction != "noeviction" {
		s.Warn("eviction", "maxmemory-policy", h.Eviction, storeAdvice["evicts"])
	} else {
		s.Ok("eviction", "maxmemory-policy", "%s", h.Eviction)
	}
	if !h.Durable {
		s.Warn("durable", "appendonly", "no", storeAdvice["volatile"])
	} else {
		s.Ok("durable", "appendonly", "yes")
	}
	checkReplicas(s, store, h)
	if h.RoundTrip > slowStore {
		s.Warn("speed", "a round trip", h.RoundTrip.Round(time.Millisecond).String(), storeAdvice["slow"])
	}
	if store.InTheClear() {
		s.Warn("tls", name, "without TLS", storeAdvice["plain"])
	}
}

// checkReplicas looks at what becomes of what is counted when another server takes the place of
// this one: replication is asynchronous.
func checkReplicas(s finding.Section, store *config.Store, h ledger.RedisHealth) {
	if store.Kind() == limit.RedisServer && h.Replicas == 0 {
		return
	}
	if h.Replicas == 0 {
		s.Warn("follows", "replicas", "none", storeAdvice["follows"])
	}
	if !h.Waits {
		s.Warn("replicas", "min-replicas-to-write", "0", storeAdvice["replicas"])
		return
	}
	s.Ok("replicas", "min-replicas-to-write", "is set, and %d follow", h.Replicas)
}
