package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
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
			log, end := startPoor(t, tc.command, dir)
			knock := func() error {
				c, err := net.Dial("unix", filepath.Join(dir, tc.socket))
				if err != nil {
					return err
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				return tc.ask(c)
			}
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

// startPoor starts a service that may open 40 files. end stops it, and wants it to have lived until
// then.
func startPoor(t *testing.T, command, dir string) (log *syncBuffer, end func()) {
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
	config := fmt.Sprintf(`tenant: {id: contoso.com, domains: [contoso.com], endpoints: {authority: "https://127.0.0.1:1"}}
credentials:
  relay-app: {client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab, client_secret_file: relay-app.secret}
mailboxes:
  - {address: scan@contoso.com, credential: relay-app}
clients:
  - {name: printers, networks: [10.2.0.0/16], from: scan@contoso.com}
milter: {listen: "unix:milter", policy_listen: "unix:policy", http: off, store: "memory:"}
token: {listen: "unix:credentials", http: off, store: "memory:", state_dir: state, peers: [%q]}
`, me.Username)
	if err := os.WriteFile(filepath.Join(dir, "sendas.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log = new(syncBuffer)
	cmd := exec.Command("sh", "-c", `ulimit -n 40 && exec "$0" "$@"`, program, command, "--config", filepath.Join(dir, "sendas.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	return log, func() {
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
