package status

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/cmd/internal/service"
)

// freeAddr returns an address on loopback that was free a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestBehindNginx: Debian's nginx with the configuration that docs/status.md gives lets those in who
// have the password, and its name of the service is one that the service answers to.
func TestBehindNginx(t *testing.T) {
	text, err := os.ReadFile("../../../docs/status.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```(?:nginx|sh)\n(.*?)```").FindAllSubmatch(text, -1)
	if len(blocks) != 2 {
		t.Fatalf("docs/status.md has %d blocks for nginx", len(blocks))
	}
	server, users := string(blocks[0][1]), string(blocks[1][1])
	addr := serveFictitious(t)
	for _, tc := range []struct {
		name     string
		change   func(server string) string
		user     string
		password string
		code     int
		want     string
	}{
		{"with the password", nil, "admin", "correct horse", 200, "9 things need you: mail is held up."},
		{"with a wrong one", nil, "admin", "wrong", 401, ""},
		{"without", nil, "", "", 401, ""},
		// The line is needed: without it the name is one that anybody could have given this address.
		{"where it sends its own name", func(s string) string { return strings.Replace(s, "Host localhost;", "Host relay.contoso.example;", 1) }, "admin", "correct horse", 421, "not called"},
	} {
		conf := server
		if tc.change != nil {
			conf = tc.change(conf)
		}
		at, client := startNginx(t, conf, users, "correct horse", addr)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+at+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "relay.contoso.com"
		if tc.user != "" {
			req.SetBasicAuth(tc.user, tc.password)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != tc.code || !strings.Contains(string(body), tc.want) {
			t.Errorf("%s: %d %s, %v", tc.name, res.StatusCode, body, err)
		}
		if strings.Contains(string(body), "127.0.0.1:9725/") {
			t.Errorf("%s: the page links to an address that is not the reader's: %s", tc.name, body)
		}
		if tc.code == 401 && (strings.Contains(string(body), "contoso") || !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Basic ")) {
			t.Errorf("%s: %v %s", tc.name, res.Header, body)
		}
	}
}

// serveFictitious serves the pages of a made-up site as the token service does.
func serveFictitious(t *testing.T) string {
	t.Helper()
	addr := freeAddr(t)
	v := fictitious()
	shown := pages(&Site{Addr: addr, Version: "devel"}, func(context.Context) any { return v.token }, func(context.Context) *view { return v },
		func(v *view) (string, string) { return "the milter", v.milterAt })
	if err := service.ServeHTTP(t.Context(), addr, prometheus.NewRegistry(), func() error { return nil }, shown, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return addr
}

// startNginx starts nginx with a server as documented, but for addresses and files, and the user
// that the commands make. It returns where it listens, and who trusts it.
func startNginx(t *testing.T, server, users, password, to string) (string, *http.Client) {
	t.Helper()
	dir, at := t.TempDir(), freeAddr(t)
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots := writeServerCertificate(t, cert, key)
	file := filepath.Join(dir, "users")
	add, _, _ := strings.Cut(users, "\n")
	if !strings.HasPrefix(add, "printf ") || !strings.Contains(users, "/etc/nginx/sendas.users") {
		t.Fatalf("no user is made by %s", users)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", strings.NewReplacer("/etc/nginx/sendas.users", file, "passwd -6", "passwd -6 -stdin").Replace(add))
	cmd.Stdin = strings.NewReader(password + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v %s", add, err, out)
	}
	server = strings.NewReplacer("listen 443 ssl", "listen "+at+" ssl", "/etc/ssl/certs/relay.contoso.com.pem", cert, "/etc/ssl/private/relay.contoso.com.key", key,
		"/etc/nginx/sendas.users", file, "127.0.0.1:9726", to).Replace(server)
	conf := "user root;\ndaemon off;\nworker_processes 1;\npid " + dir + "/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		conf += kind + "_temp_path " + filepath.Join(dir, kind) + ";\n"
	}
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf+server+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	nginx := exec.CommandContext(ctx, "/usr/sbin/nginx", "-p", dir, "-c", path, "-e", "stderr")
	nginx.Cancel = func() error { return nginx.Process.Signal(os.Interrupt) } // a fast end, of its workers too
	nginx.WaitDelay = 20 * time.Second
	log := new(strings.Builder)
	nginx.Stderr = log
	if err := nginx.Start(); err != nil {
		t.Fatalf("%v; it is in Debian's package nginx-light", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- nginx.Wait() }()
	t.Cleanup(func() { cancel(); <-ended })
	for tries := 0; ; tries++ {
		c, err := net.Dial("tcp", at)
		if err == nil {
			c.Close()
			break
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("nginx: %v\n%s", err, log)
		case <-time.After(20 * time.Millisecond):
		}
		if tries > 3000 {
			t.Fatal("nginx does not listen")
		}
	}
	return at, &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "relay.contoso.com"}}, Timeout: time.Minute}
}

// writeServerCertificate writes a certificate for relay.contoso.com, and returns who trusts it.
func writeServerCertificate(t *testing.T, cert, key string) *x509.CertPool {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay.contoso.com"}, DNSNames: []string{"relay.contoso.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := errors.Join(os.WriteFile(cert, text, 0o600), os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600)); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return roots
}
