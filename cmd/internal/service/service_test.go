package service

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/serve"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := Listen("milter", serve.Unix(path))
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o666 {
		t.Errorf("socket %v, %v, want mode 0666", fi.Mode(), err)
	}
	if _, err := Listen("milter", serve.Unix(path)); err == nil || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("a socket in use: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after kill -9
	l.Close()
	l, err = Listen("milter", serve.Unix(path))
	if err != nil {
		t.Fatalf("a socket left over: %v", err)
	}
	l.Close()

	tcp, err := Listen("milter", "inet:127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	_, err = Listen("milter", serve.Inet(tcp.Addr().String()))
	var e *exit.Error
	if !errors.As(err, &e) || e.Code != exit.TempFail || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("an address in use: %v, want exit code 75", err)
	}

	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("mail"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("milter", serve.Unix(file)); err == nil {
		t.Error("listening on a file that is no socket succeeded")
	}
	if b, _ := os.ReadFile(file); string(b) != "mail" {
		t.Error("a file that is no socket was replaced")
	}
}
