package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"
)

// storeAdvice is about the ledger of the token service.
var storeAdvice = map[string]advice{
	"memory":   {means: "what was sent is forgotten when the token service ends, and Microsoft's limits may be crossed after a restart", do: "write store: bolt:FILE below token: in sendas.yaml, or remove the line"},
	"absent":   {means: "the token service has not run yet, or keeps its ledger elsewhere", do: "systemctl start sendas-token"},
	"folder":   {means: "this user may not look", do: "run this as root"},
	"away":     {means: "while the store is away, this host keeps to its share of the limits, and mail waits longer", do: "look at the server: redis-cli ping; its address is token.store in sendas.yaml"},
	"password": {means: "the store asks for another password", do: "compare store_password_file in sendas.yaml with requirepass of the server, and restart sendas-token"},
	"file":     {means: "the token service cannot log in to the store", do: "mend the file; token.store_password_file in sendas.yaml names it"},
	"evicts":   {means: "when its memory is full, the server throws away what was counted, and Microsoft's limits are crossed", do: "redis-cli config set maxmemory-policy noeviction, and the same in redis.conf"},
	"volatile": {means: "when the server restarts, what was sent in the last day is gone: each host books its own part anew, and mail waits until all have", do: "redis-cli config set appendonly yes, and the same in redis.conf"},
	"slow":     {means: "each message costs two questions to the store", do: "put the server nearer to this host"},
	"plain":    {means: "addresses of mailboxes, and the password, cross the network in the clear", do: "write rediss:// in token.store, and give the server a certificate (tls-port in redis.conf)"},
}

// slowStore is a round trip that is no neighbour's.
const slowStore = 50 * time.Millisecond

// checkStore looks at where the token service keeps what it counts.
func (d *doctor) checkStore(ctx context.Context) {
	s := d.section("store", "ledger")
	c := d.settings()
	store := c.Token.store()
	switch {
	case store.shared():
		d.checkRedis(ctx, s, c, &store)
	case store.file() == "":
		s.warn("kind", "token.store", "in memory", storeAdvice["memory"])
	default:
		checkLedgerFile(s, store.file())
	}
}

func checkLedgerFile(s section, file string) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.warn("file", file, "is not there", storeAdvice["absent"])
	case err != nil:
		s.warn("file", file, rootCause(err), storeAdvice["folder"])
	default:
		s.ok("file", file, "%d kB, last written %s", (info.Size()+1023)/1024, info.ModTime().UTC().Format(time.RFC3339))
	}
}

// checkRedis asks the store that hosts share.
func (d *doctor) checkRedis(ctx context.Context, s section, c *Config, store *StoreConfig) {
	name := store.name()
	r, err := store.ledger(c)
	if err != nil {
		s.fail("password", name, err.Error(), storeAdvice["file"])
		return
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(ctx, socketTime)
	defer cancel()
	h, err := r.Health(ctx)
	switch {
	case err != nil && h.Locked:
		s.fail("server", name, "refuses the password", storeAdvice["password"])
		return
	case err != nil && h.RoundTrip == 0:
		s.fail("server", name, err.Error(), storeAdvice["away"])
		return
	case err != nil:
		s.skip("server", name, "%v", err)
		return
	}
	s.ok("server", name, "version %s, shared by %d hosts", h.Version, store.Hosts)
	if h.Eviction != "noeviction" {
		s.warn("eviction", "maxmemory-policy", h.Eviction, storeAdvice["evicts"])
	} else {
		s.ok("eviction", "maxmemory-policy", "%s", h.Eviction)
	}
	if !h.Durable {
		s.warn("durable", "appendonly", "no", storeAdvice["volatile"])
	} else {
		s.ok("durable", "appendonly", "yes")
	}
	if h.RoundTrip > slowStore {
		s.warn("speed", "a round trip", h.RoundTrip.Round(time.Millisecond).String(), storeAdvice["slow"])
	}
	if strings.HasPrefix(store.Store, "redis://") && !loopback(store.hostname()) {
		s.warn("tls", name, "without TLS", storeAdvice["plain"])
	}
}
