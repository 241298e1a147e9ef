package limit

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Redis say how to reach a Redis or Valkey.
type Redis struct {
	URL              string // see [ParseRedisURL]
	Password         string // "": that of the URL, if there is one
	SentinelPassword string // of the sentinels, where they want one
	CAFile           string // PEM: the only anchors that are trusted for TLS; "": the system's
	CertificateFile  string // PEM: what is shown to a server that wants to see one,
	KeyFile          string // and its key, unless that is in CertificateFile too. Both are read anew for each connection.

	Prefix     string        // of all keys; "": sendas
	Tenant     string        // keeps tenants apart that use one server
	MaxSession time.Duration // of a ledger: when a lease that nobody settles is taken back; 0: its own choice
	Timeout    time.Duration // for one answer; 0: 2 s
}

// Client makes a client, without asking whether the server is there. example is what a URL looks
// like. Nothing is sent twice: what the server may have done must not be asked for again.
func (o *Redis) Client(example string) (redis.UniversalClient, error) {
	u, err := ParseRedisURL(o.URL)
	if err != nil { // the sentence names no part of the URL that can be a password
		return nil, errors.New("the URL of the store is not right; write " + example + ", rediss://… or unix:///PATH")
	}
	ro, err := u.options()
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Second
	}
	if ro.TLSConfig != nil {
		if err := o.secure(ro.TLSConfig); err != nil {
			return nil, err
		}
	}
	silence()
	all := &redis.UniversalOptions{
		Addrs: u.Hosts, MasterName: u.Master, DB: ro.DB, Username: ro.Username, Password: cmp.Or(o.Password, ro.Password),
		SentinelUsername: u.SentinelUser, SentinelPassword: o.SentinelPassword, TLSConfig: ro.TLSConfig, Protocol: ro.Protocol, ClientName: ro.ClientName,
		DialTimeout: o.Timeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.Timeout, ContextTimeoutEnabled: true,
		MaxRetries: -1, DialerRetries: 1,
		// What we do not need, a user of the server's access list need not be allowed.
		DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		PoolSize: ro.PoolSize, MinIdleConns: ro.MinIdleConns, MaxIdleConns: ro.MaxIdleConns, MaxActiveConns: ro.MaxActiveConns,
		ConnMaxIdleTime: ro.ConnMaxIdleTime, ConnMaxLifetime: ro.ConnMaxLifetime,
	}
	switch u.Kind {
	case RedisSentinel:
		return redis.NewFailoverClient(all.Failover()), nil
	case RedisCluster:
		c := all.Cluster()
		c.DisableRoutingPolicies = true // each command of ours has a key, and its answer is one node's
		return redis.NewClusterClient(c), nil
	}
	one := all.Simple()
	one.Network, one.Addr = ro.Network, ro.Addr
	return redis.NewClient(one), nil
}

// secure fills in what is trusted and what is shown. Each connection looks at the files of the
// certificate anew, so a new one needs no restart.
func (o *Redis) secure(c *tls.Config) error {
	c.MinVersion = tls.VersionTLS12
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return fmt.Errorf("the anchors for the store's certificate: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return errors.New(o.CAFile + " holds no certificate in PEM")
		}
	}
	if o.CertificateFile != "" {
		certificate, key := o.CertificateFile, cmp.Or(o.KeyFile, o.CertificateFile)
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(certificate, key)
			return &pair, err
		}
	}
	return nil
}

// Keys returns what all keys begin with. The braces keep them on one node of a cluster: an empty
// pair would not (Redis cluster specification, "Hash tags").
func (o *Redis) Keys() string {
	return cmp.Or(o.Prefix, "sendas") + ":{" + cmp.Or(o.Tenant, "tenant") + "}:"
}

// once is a command that is never sent again where the server may have done it. A node of a cluster
// that says MOVED or ASK has not, so that is followed.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

// A Script is what a server runs as a whole. It is safe for concurrent use.
type Script struct{ source, sha string }

// NewScript makes a script of its text.
func NewScript(source string) *Script { return &Script{source, redis.NewScript(source).Hash()} }

// Run runs it once and returns its answer: in one round trip, or two where the server does not know
// the script yet (NOSCRIPT). After an error the server may have run it, and nobody has asked again.
func (s *Script) Run(ctx context.Context, c redis.UniversalClient, keys []string, body []byte) (string, error) {
	cmd := s.command(ctx, "evalsha", s.sha, keys, body)
	err := c.Process(ctx, once{cmd})
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		cmd = s.command(ctx, "eval", s.source, keys, body)
		err = c.Process(ctx, once{cmd})
	}
	if err != nil {
		ReloadCluster(ctx, c, err)
		return "", err
	}
	return cmd.Text()
}

// ReloadCluster has the client of a cluster look which node has which keys, after an error that is
// no server's answer: it does so by itself where a node says MOVED, and a dead one says nothing.
func ReloadCluster(ctx context.Context, c redis.UniversalClient, err error) {
	var answer redis.Error
	if cluster, ok := c.(*redis.ClusterClient); ok && err != nil && !errors.As(err, &answer) {
		cluster.ReloadState(ctx)
	}
}

func (s *Script) command(ctx context.Context, name, script string, keys []string, body []byte) *redis.Cmd {
	args := make([]any, 0, 4+len(keys))
	args = append(args, name, script, len(keys))
	for _, k := range keys {
		args = append(args, k)
	}
	return redis.NewCmd(ctx, append(args, body)...)
}

// quiet keeps the client library off stderr: all that it would say there comes back as an error.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

var silence = sync.OnceFunc(func() { redis.SetLogger(quiet{}) })
