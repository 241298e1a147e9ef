package limit

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseRedisURL(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want RedisURL // without what the library reads
		user string
		db   int
	}{
		{"redis://redis.contoso.com", RedisURL{Hosts: []string{"redis.contoso.com:6379"}}, "", 0},
		{"redis://sendas@redis.contoso.com:6380/2", RedisURL{Hosts: []string{"redis.contoso.com:6380"}}, "sendas", 2},
		{"rediss://:pw@[2001:db8::7]/1", RedisURL{TLS: true, Hosts: []string{"[2001:db8::7]:6379"}, HasPassword: true}, "", 1},
		{"unix:///run/redis/redis.sock", RedisURL{Socket: "/run/redis/redis.sock"}, "", 0},
		{"unix://sendas@/run/redis/a,b.sock?db=3", RedisURL{Socket: "/run/redis/a,b.sock"}, "sendas", 3},
		{"redis+sentinel://a,b:26380,[2001:db8::7]/mymaster", RedisURL{Kind: RedisSentinel, Hosts: []string{"a:26379", "b:26380", "[2001:db8::7]:26379"}, Master: "mymaster"}, "", 0},
		{"rediss+sentinel://sendas@a/mymaster/4?sentinel_user=guard&pool_size=7", RedisURL{Kind: RedisSentinel, TLS: true, Hosts: []string{"a:26379"}, Master: "mymaster", SentinelUser: "guard"}, "sendas", 4},
		{"redis+cluster://sendas@a,b:7000", RedisURL{Kind: RedisCluster, Hosts: []string{"a:6379", "b:7000"}}, "sendas", 0},
		{"rediss+cluster://a/0", RedisURL{Kind: RedisCluster, TLS: true, Hosts: []string{"a:6379"}}, "", 0},
	} {
		got, err := ParseRedisURL(tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		o, err := got.options()
		if err != nil || o.Username != tc.user || o.DB != tc.db || (o.TLSConfig != nil) != tc.want.TLS {
			t.Errorf("%s: user %q, database %d, %v, want %q and %d", tc.in, o.Username, o.DB, err, tc.user, tc.db)
		}
		got.plain = ""
		if !reflect.DeepEqual(*got, tc.want) {
			t.Errorf("ParseRedisURL(%q) = %+v, want %+v", tc.in, *got, tc.want)
		}
	}
}

func TestParseRedisURLRefuses(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"redis.contoso.com:6379", ErrRedisScheme.Error()},
		{"mysql://db/0", ErrRedisScheme.Error()},
		{"sentinel+redis://a/m", ErrRedisScheme.Error()},
		{"redis://:s3/cret@h:6379/0", "not the URL"},
		{"redis://u:1/2s3cret@h/0", "not the URL"},
		{"redis://u:s3cret@h:port/0", "not the URL"},
		{"redis+cluster://sendas:s3cret@a,:6379", "the host is missing"},
		{"redis://", "the host is missing; write redis://HOST:6379/0"},
		{"redis://a,b", "redis+sentinel://"},
		{"redis+sentinel://a,b", "the name of the master is missing"},
		{"redis+sentinel://a,b/m/x", `"x" is not the number`},
		{"redis+sentinel://a,/m", "the host is missing"},
		{"redis+cluster://a/1", "database 0 alone"},
		{"redis+cluster://a?db=1", "database 0 alone"},
		{"redis+cluster://a?sentinel_user=x", "no sentinels"},
		{"redis://h/0?nonsense=1", "not the URL"},
		{"unix://run/redis.sock", "path of the socket"},
		{"rediss://h/0?skip_verify=true", "without verification"},
		{"rediss+cluster://h,i?skip_verify=false", "without verification"},
	} {
		u, err := ParseRedisURL(tc.in)
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("ParseRedisURL(%q): %+v, %v, want %q", tc.in, u, err, tc.want)
		}
	}
	if _, err := ParseRedisURL("http://h"); !errors.Is(err, ErrRedisScheme) {
		t.Errorf("http: %v", err)
	}
}

// Every key of a tenant has to be in one slot of a cluster, which only a tag does that is not empty.
func TestKeysOfATenantHaveOneTag(t *testing.T) {
	for _, tc := range []struct {
		o    Redis
		want string
	}{
		{Redis{Tenant: "contoso.com"}, "sendas:{contoso.com}:"},
		{Redis{Prefix: "site", Tenant: "contoso.com"}, "site:{contoso.com}:"},
		{Redis{}, "sendas:{tenant}:"},
	} {
		if got := tc.o.Keys(); got != tc.want {
			t.Errorf("keys of %+v begin with %q, want %q", tc.o, got, tc.want)
		}
	}
}
