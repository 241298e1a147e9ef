package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// syncBuffer collects what a process writes while the test reads it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestNoDescriptorsLeft fills a service with connections until it can open no more: it goes on when
// they have gone, and says in one line what was short.
func TestNoDescriptorsLeft(t *testing.T) {
	for _, tc := range []struct {
		command, socket string
		ask             func(net.Conn) error
	}{
		{"milter", "milter", askMilter},
		{"milter", "policy", askPolicy},
		{"token", "credentials", askCredentials},
	} {
		t.Run(tc.socket, func(t *testing.T) {
			dir := t.TempDir()
			log, _, end := startPoor(t, tc.command, dir, 40, "off")
			knock := func() error { return knock(filepath.Join(dir, tc.socket), tc.ask) }
			eventually(t, log, "the service is ready", func() bool { return knock() == nil })
			var open []net.Conn
			for range 100 { // those that are not accepted wait in the kernel
				c, err := net.Dial("unix", filepath.Join(dir, tc.socket))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				open = append(open, c)
			}
			const short, over = "no connection can be accepted for now", "connections are accepted again"
			eventually(t, log, "the shortage is logged", func() bool { return strings.Contains(log.String(), short) })
			for _, c := range open {
				c.Close()
			}
			if err := knock(); err != nil {
				t.Errorf("after the shortage: %v", err)
			}
			eventually(t, log, "its end is logged", func() bool { return strings.Contains(log.String(), over) })
			end()
			if n := strings.Count(log.String(), short); n != 1 || !strings.Contains(log.String(), "too many open files") {
				t.Errorf("%d lines say what was short, want 1:\n%.3000s", n, log)
			}
		})
	}
}

// knock connects to a socket and asks there.
func knock(path string, ask func(net.Conn) error) error {
	c, err := net.DialTimeout("unix", path, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	return ask(c)
}

// TestFloodByHTTP: strangers with more connections than the service may open files take none from
// Postfix, and who asks for figures gets them.
func TestFloodByHTTP(t *testing.T) {
	const files = 256
	for _, tc := range []struct {
		command string
		asks    map[string]func(net.Conn) error
	}{
		{"milter", map[string]func(net.Conn) error{"milter": askMilter, "policy": askPolicy}},
		{"token", map[string]func(net.Conn) error{"credentials": askCredentials}},
	} {
		t.Run(tc.command, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := ln.Addr().String()
			ln.Close()
			dir := t.TempDir()
			log, pid, end := startPoor(t, tc.command, dir, files, addr)
			for name, ask := range tc.asks {
				eventually(t, log, "the service is ready", func() bool { return knock(filepath.Join(dir, name), ask) == nil })
			}
			for i := range files + 50 {
				c, err := net.DialTimeout("tcp", addr, 10*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				switch i % 3 { // those that have asked and stay, those that go on asking, and those that say nothing
				case 0:
					io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
				case 1:
					io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: local")
				}
			}
			for range 20 {
				for name, ask := range tc.asks {
					if err := knock(filepath.Join(dir, name), ask); err != nil {
						t.Errorf("%s in the flood: %v", name, err)
					}
				}
			}
			open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			if err != nil || len(open) > files/2 {
				t.Errorf("in the flood %d of %d files are open, %v", len(open), files, err)
			}
			res, err := (&http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + addr + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK || !bytes.Contains(b, []byte("sendas_build_info")) {
				t.Errorf("figures in the flood: %s, %v", res.Status, err)
			}
			end()
			if strings.Contains(log.String(), "too many open files") {
				t.Errorf("the flood took all files:\n%.3000s", log)
			}
		})
	}
}

// startPoor starts a service that may open so many files, with figures at an address. end stops it,
// and wants it to have lived until then.
func startPoor(t *testing.T, command, dir string, files int, figures string) (log *syncBuffer, pid int, end func()) {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "sendas") // by this name the test's program is sendas: see TestMain
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "relay-app.secret"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := map[string]string{"milter": "off", "token": "off"}
	at[command] = figures
	config := fmt.Sprintf(`tenant: {id: contoso.com, domains: [contoso.com], endpoints: {authority: "https://127.0.0.1:1"}}
credentials:
  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: relay-app.secret}
mailboxes:
  - {address: scan@contoso.com, credential: relay-app}
clients:
  - {name: printers, networks: [10.2.0.0/16], from: scan@contoso.com}
milter: {listen: "unix:milter", policy_listen: "unix:policy", http: %q, store: "memory:"}
token: {listen: "unix:credentials", http: %q, store: "memory:", state_dir: state, peers: [%q]}
`, at["milter"], at["token"], me.Username)
	if err := os.WriteFile(filepath.Join(dir, "sendas.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log = new(syncBuffer)
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, files), program, command, "--config", filepath.Join(dir, "sendas.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	return log, cmd.Process.Pid, func() {
		t.Helper()
		cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("the service: %v\n%.3000s", err, log)
		}
	}
}

// eventually waits for something, for a minute at most.
func eventually(t *testing.T, log fmt.Stringer, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in a minute: %s\n%.3000s", what, log)
		}
	}
}

// askMilter offers the milter what Postfix offers, and waits for its answer.
func askMilter(c net.Conn) error {
	if _, err := c.Write([]byte("\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 17))
	return err
}

// askPolicy asks the policy service about a stranger.
func askPolicy(c net.Conn) error {
	if _, err := io.WriteString(c, "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\n\n"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len("action=")))
	return err
}

// askCredentials asks for the way out of the null sender. Whoever may not ask is sent away, which
// is an answer too.
func askCredentials(c net.Conn) error {
	if _, err := io.WriteString(c, "12:transport <>,"); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}
