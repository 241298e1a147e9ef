package limit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/policy/limit/redistest"
)

// counting counts how often it ran, in two keys of a tenant.
var counting = limit.NewScript("redis.call('INCR', KEYS[2]) return redis.call('INCR', KEYS[1]) .. ARGV[1]")

func connect(t *testing.T, o limit.Redis) redis.UniversalClient {
	t.Helper()
	c, err := o.Client("redis://HOST:6379/0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// run counts once, and returns how often it was counted.
func run(t *testing.T, c redis.UniversalClient, o limit.Redis) (int, error) {
	t.Helper()
	text, err := counting.Run(t.Context(), c, []string{o.Keys() + "a", o.Keys() + "b"}, []byte("x"))
	n, _ := strconv.Atoi(strings.TrimSuffix(text, "x"))
	return n, err
}

// issue writes a certificate and its key, both into one file, and returns it.
func issue(t *testing.T, dir, name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (string, *x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: parent == nil}
	if parent == nil {
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name+".pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, c, key
}

// TestRedisByTLS: an authority of one's own is the only one that is trusted, and the server sees our
// certificate.
func TestRedisByTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, caCert, caKey := issue(t, dir, "ca", nil, nil)
	server, _, _ := issue(t, dir, "server", caCert, caKey)
	relay, _, _ := issue(t, dir, "relay", caCert, caKey)
	other, _, _ := issue(t, dir, "other", nil, nil)
	port := redistest.FreePort(t)
	redistest.StartNode(t, "--tls-port", port, "--tls-cert-file", server, "--tls-key-file", server, "--tls-ca-cert-file", ca, "--tls-auth-clients", "yes")
	for _, tc := range []struct {
		name string
		o    limit.Redis
		want string // "": it works
	}{
		{"all is right", limit.Redis{CAFile: ca, CertificateFile: relay}, ""},
		{"certificate and key apart", limit.Redis{CAFile: ca, CertificateFile: relay, KeyFile: relay}, ""},
		{"the system's authorities", limit.Redis{CertificateFile: relay}, "unknown authority"},
		{"another authority", limit.Redis{CAFile: other, CertificateFile: relay}, "unknown authority"},
		{"nothing to show", limit.Redis{CAFile: ca}, "certificate required"},
		{"another's certificate", limit.Redis{CAFile: ca, CertificateFile: other}, ""},
	} {
		tc.o.URL = "rediss://127.0.0.1:" + port + "/0"
		_, err := run(t, connect(t, tc.o), tc.o)
		if tc.name == "another's certificate" { // the server's alert differs
			tc.want = "tls"
		}
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// TestRedisUser: a user of the server's access list has the right to its own keys alone.
func TestRedisUser(t *testing.T) {
	t.Parallel()
	n := redistest.StartNode(t)
	n.Do(t, append([]string{"acl", "setuser", "sendas", "on", ">s3cret", "resetkeys", "~sendas:*"}, strings.Fields(redistest.ACL)...)...)
	at := "redis://sendas@" + n.Addr + "/0"
	o := limit.Redis{URL: at, Password: "s3cret", Tenant: "contoso.com"}
	if _, err := run(t, connect(t, o), o); err == nil || !strings.Contains(err.Error(), "can't run this command") {
		t.Errorf("INCR is no command of ours: %v, want a refusal", err)
	}
	set := limit.NewScript("return redis.call('SET', KEYS[1], ARGV[1]) and 'done'")
	if got, err := set.Run(t.Context(), connect(t, o), []string{o.Keys() + "a"}, []byte("x")); got != "done" || err != nil {
		t.Errorf("a key of ours: %q, %v", got, err)
	}
	if _, err := set.Run(t.Context(), connect(t, o), []string{"other"}, []byte("x")); err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("another's key: %v, want a refusal", err)
	}
	wrong := limit.Redis{URL: at, Password: "wr0ng", Tenant: "contoso.com"}
	if _, err := run(t, connect(t, wrong), wrong); err == nil || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("another password: %v", err)
	}
}

// lossy carries one connection to a server, and loses the answer to the first script of it.
func lossy(t *testing.T, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var once sync.Once
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				return
			}
			go func() { _, _ = io.Copy(in, out); in.Close() }()
			go func() {
				defer in.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := in.Read(buf)
					if err != nil {
						return
					}
					if strings.Contains(string(buf[:n]), "evalsha") {
						lost := false
						once.Do(func() { lost = true })
						if lost { // the server does it; nobody hears of it
							in.Close()
							_, _ = out.Write(buf[:n])
							return
						}
					}
					if _, err := out.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestScriptIsNotRepeatedBlindly: a script whose answer is lost may have run, so it is the caller's
// to say what then; one that the server does not know, and one that another node has to run, are
// asked for again by themselves.
func TestScriptIsNotRepeatedBlindly(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	o := limit.Redis{URL: cluster.URL(), Tenant: "contoso.com"}
	home := cluster.MasterOf(t, o.Keys()+"a")
	c := connect(t, o)
	for want := 1; want <= 2; want++ { // with NOSCRIPT, and without
		if n, err := run(t, c, o); n != want || err != nil {
			t.Fatalf("counted %d times, %v, want %d", n, err, want)
		}
	}
	alone := redistest.StartNode(t)
	one := limit.Redis{URL: "redis://" + lossy(t, alone.Addr) + "/0", Tenant: "contoso.com"}
	if _, err := counting.Run(t.Context(), connect(t, limit.Redis{URL: "redis://" + alone.Addr}), []string{"a", "b"}, nil); err != nil {
		t.Fatal(err) // the server knows the script now
	}
	if _, err := run(t, connect(t, one), one); err == nil {
		t.Error("the answer was lost, and there is no error")
	}
	redistest.WaitFor(t, "the script that nobody heard of", func() bool { return alone.Do(t, "get", one.Keys()+"a") == "1" })
	time.Sleep(100 * time.Millisecond) // another one would have come by now
	if got := alone.Do(t, "get", one.Keys()+"a"); got != "1" {
		t.Errorf("the script ran %s times, want once", got)
	}

	// The keys move to another node while the client knows of nothing (MOVED), or are on their way
	// (ASK).
	var to *redistest.Node
	for _, n := range cluster.Nodes {
		if n != home && strings.Contains(n.Do(t, "info", "replication"), "role:master") {
			to = n
		}
	}
	slot := home.Do(t, "cluster", "keyslot", o.Keys()+"a")
	homeID, toID := home.Do(t, "cluster", "myid"), to.Do(t, "cluster", "myid")
	to.Do(t, "cluster", "setslot", slot, "importing", homeID)
	home.Do(t, "cluster", "setslot", slot, "migrating", toID)
	_, port, _ := net.SplitHostPort(to.Addr)
	home.Do(t, "migrate", "127.0.0.1", port, "", "0", "5000", "keys", o.Keys()+"a", o.Keys()+"b")
	if n, err := run(t, c, o); n != 3 || err != nil {
		t.Errorf("on its way: counted %d times, %v, want 3", n, err)
	}
	for _, n := range []*redistest.Node{to, home} {
		n.Do(t, "cluster", "setslot", slot, "node", toID)
	}
	if n, err := run(t, c, o); n != 4 || err != nil {
		t.Errorf("moved: counted %d times, %v, want 4", n, err)
	}
}

// TestRedisOfSentinels: the database, the user and the master are those that the URL names.
func TestRedisOfSentinels(t *testing.T) {
	t.Parallel()
	p := redistest.StartWatch(t, 1)
	o := limit.Redis{URL: strings.TrimSuffix(p.URL(), "/0") + "/3", Tenant: "contoso.com"}
	c := connect(t, o)
	if n, err := run(t, c, o); n != 1 || err != nil {
		t.Fatalf("counted %d times, %v, want once", n, err)
	}
	master, _ := p.Master(t)
	if got := master.Do(t, "-n", "3", "get", o.Keys()+"a"); got != "1" {
		t.Errorf("in database 3 it is %q, want 1", got)
	}
	redistest.WaitFor(t, "the replica", func() bool {
		_, r := p.Master(t)
		return r[0].Do(t, "-n", "3", "get", o.Keys()+"a") == "1"
	})
	master.Kill()
	p.WaitMaster(t, master)
	redistest.WaitFor(t, "the client at the new master", func() bool { n, err := run(t, c, o); return err == nil && n >= 2 })
	unknown := limit.Redis{URL: strings.Replace(o.URL, "mymaster", "other", 1), Tenant: "contoso.com"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := connect(t, unknown).Ping(ctx).Err(); err == nil {
		t.Error("a master that no sentinel knows answers")
	}
}
