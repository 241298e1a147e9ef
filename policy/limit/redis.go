package limit

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis say how to reach a Redis or Valkey.
type Redis struct {
	URL        string        // redis://[USER@]HOST:PORT/DB, rediss:// for TLS, unix://[USER@]/PATH?db=N
	Password   string        // "": that of the URL, if there is one
	Prefix     string        // of all keys; "": sendas
	Tenant     string        // keeps tenants apart that use one server
	MaxSession time.Duration // of a ledger: when a lease that nobody settles is taken back; 0: its own choice
	Timeout    time.Duration // for one answer; 0: 2 s
}

// Client makes a client, without asking whether the server is there. example is what a URL looks
// like. Nothing is sent twice: what the server may have done must not be asked for again.
func (o *Redis) Client(example string) (*redis.Client, error) {
	ro, err := redis.ParseURL(o.URL)
	if err != nil { // the library's text may hold the password
		return nil, errors.New("the URL of the store is not right; write " + example + ", rediss://… or unix:///PATH")
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Second
	}
	if o.Password != "" {
		ro.Password = o.Password
	}
	ro.DialTimeout, ro.ReadTimeout, ro.WriteTimeout, ro.PoolTimeout = o.Timeout, o.Timeout, o.Timeout, o.Timeout
	ro.ContextTimeoutEnabled = true
	ro.MaxRetries = -1
	ro.DialerRetries = 1
	silence()
	return redis.NewClient(ro), nil
}

// Keys returns what all keys begin with. The braces keep them on one node of a cluster.
func (o *Redis) Keys() string { return cmp.Or(o.Prefix, "sendas") + ":{" + o.Tenant + "}:" }

// quiet keeps the client library off stderr: all that it would say there comes back as an error.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

var silence = sync.OnceFunc(func() { redis.SetLogger(quiet{}) })
