package limit

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/redis/go-redis/v9"
)

// A RedisKind is how a store is set up.
type RedisKind int

// The kinds of stores.
const (
	RedisServer   RedisKind = iota // one server
	RedisSentinel                  // a master that sentinels name, which changes
	RedisCluster                   // the node of a cluster that has our keys
)

// A RedisURL is where a store is.
type RedisURL struct {
	Kind         RedisKind
	TLS          bool
	Hosts        []string // HOST:PORT, of sentinels or nodes too; none for a socket
	Master       string   // the name by which sentinels know it
	Socket       string   // the path, for one server
	SentinelUser string
	HasPassword  bool

	plain string // a URL of one server, with the options
}

var (
	// ErrRedisScheme is the error for a URL that names something else than a Redis.
	ErrRedisScheme = errors.New("this is no Redis")
	// ErrRedisURL is the error for one that cannot be read, or has an option that nobody knows.
	ErrRedisURL = errors.New("this is not the URL of a Redis")
)

// redisSchemes are the ways to write a store.
var redisSchemes = map[string]RedisURL{
	"redis": {}, "rediss": {TLS: true}, "unix": {},
	"redis+sentinel": {Kind: RedisSentinel}, "rediss+sentinel": {Kind: RedisSentinel, TLS: true},
	"redis+cluster": {Kind: RedisCluster}, "rediss+cluster": {Kind: RedisCluster, TLS: true},
}

// ParseRedisURL reads one of
//
//	redis://[USER@]HOST:6379/DB
//	redis+sentinel://[USER@]SENTINEL:26379,SENTINEL:26379,…/MASTER[/DB][?sentinel_user=USER]
//	redis+cluster://[USER@]NODE:6379,NODE:6379,…
//	unix://[USER@]/PATH[?db=DB]
//
// with rediss for redis where TLS protects it. The error is a sentence that shows no part of the
// URL that can be a password; it may be ErrRedisScheme or
// ErrRedisURL.
func ParseRedisURL(s string) (*RedisURL, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return nil, ErrRedisScheme
	}
	r, ok := redisSchemes[scheme]
	if !ok {
		return nil, ErrRedisScheme
	}
	user, hosts, tail := splitRedis(rest)
	u, err := url.Parse(scheme + "://" + user + hosts[0] + tail)
	if err != nil { // its text may hold a password
		return nil, ErrRedisURL
	}
	_, r.HasPassword = u.User.Password()
	query := u.Query()
	if query.Has("skip_verify") {
		return nil, errors.New("without verification anybody can pretend to be the store, and so let mail pass that is over the limits; remove skip_verify, " +
			"and name the authority of the store's certificate under store_ca_file")
	}
	base := "redis"
	if r.TLS {
		base = "rediss"
	}
	if scheme == "unix" {
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return nil, errors.New("the path of the socket is missing; write unix:///run/redis/redis.sock")
		}
		r.Socket, r.plain = u.Path, s
		return r.complete()
	}
	if err := r.hosts(scheme, hosts); err != nil {
		return nil, err
	}
	db, err := r.path(scheme, u)
	if err != nil {
		return nil, err
	}
	r.SentinelUser = query.Get("sentinel_user")
	if query.Del("sentinel_user"); r.SentinelUser != "" && r.Kind != RedisSentinel {
		return nil, errors.New("there are no sentinels here; remove sentinel_user")
	}
	plain := url.URL{Scheme: base, User: u.User, Host: r.Hosts[0], Path: "/" + db, RawQuery: query.Encode()}
	r.plain = plain.String()
	return r.complete()
}

// complete reports whether the library takes the options.
func (r *RedisURL) complete() (*RedisURL, error) {
	_, err := r.options()
	return r, err
}

// options is what the library makes of it: who logs in, which database, and what is fine-tuned.
func (r *RedisURL) options() (*redis.Options, error) {
	o, err := redis.ParseURL(r.plain)
	if err != nil { // the library's text may hold the password
		return nil, ErrRedisURL
	}
	return o, nil
}

// splitRedis takes apart what follows the scheme: who logs in, with @; hosts, at least one; and the
// rest.
func splitRedis(s string) (user string, hosts []string, tail string) {
	authority := s
	if i := strings.IndexAny(s, "/?#"); i >= 0 {
		authority, tail = s[:i], s[i:]
	}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, authority = authority[:i+1], authority[i+1:]
	}
	return user, strings.Split(authority, ","), tail
}

// hosts fills in the ports that are usual.
func (r *RedisURL) hosts(scheme string, list []string) error {
	port := "6379"
	if r.Kind == RedisSentinel {
		port = "26379"
	}
	if len(list) > 1 && r.Kind == RedisServer {
		return fmt.Errorf("several servers are a Sentinel or a Cluster; write %s+sentinel://HOST:26379,HOST:26379/MASTER/0 or %s+cluster://HOST:6379,HOST:6379", scheme, scheme)
	}
	for _, h := range list {
		u, err := url.Parse("redis://" + h)
		if err != nil || u.User != nil {
			return ErrRedisURL
		}
		if u.Hostname() == "" {
			return fmt.Errorf("the host is missing; write %s", r.example(scheme))
		}
		p := u.Port()
		if p == "" {
			p = port
		}
		r.Hosts = append(r.Hosts, net.JoinHostPort(u.Hostname(), p))
	}
	return nil
}

// path reads the name of the master and the number of the database.
func (r *RedisURL) path(scheme string, u *url.URL) (db string, err error) {
	db = strings.Trim(u.Path, "/")
	if r.Kind == RedisSentinel {
		r.Master, db, _ = strings.Cut(db, "/")
		if r.Master == "" {
			return "", fmt.Errorf("the name of the master is missing, as the sentinels know it; write %s", r.example(scheme))
		}
	}
	if strings.Contains(db, "@") {
		return "", ErrRedisURL // a slash in a password, perhaps
	}
	if strings.Trim(db, "0123456789") != "" {
		return "", fmt.Errorf("%.80q is not the number of a database; write %s", db, r.example(scheme))
	}
	if n := u.Query().Get("db"); r.Kind == RedisCluster && (strings.Trim(db, "0") != "" || strings.Trim(n, "0") != "") {
		return "", errors.New("a cluster has database 0 alone; remove the number")
	}
	return db, nil
}

// example is how it is written.
func (r *RedisURL) example(scheme string) string {
	switch r.Kind {
	case RedisSentinel:
		return scheme + "://HOST:26379,HOST:26379/MASTER/0"
	case RedisCluster:
		return scheme + "://HOST:6379,HOST:6379"
	}
	host := "HOST:6379"
	if len(r.Hosts) > 0 {
		host = strings.TrimSuffix(r.Hosts[0], ":6379")
	}
	return scheme + "://" + host + "/0"
}
