package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMain makes the test binary the program itself when a test starts it so.
func TestMain(m *testing.M) {
	if os.Getenv("EXOSIM_TEST_RUN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func config(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "exosim.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestProgram: it says where it listens when it listens, and ends when asked.
func TestProgram(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		file := config(t, "admin: 127.0.0.1:0\nmx: 127.0.0.1:0\nimds: 127.0.0.1:0\narc_keys: keys\ndomains: [contoso.com]\nca_file: ca.pem\nmailboxes: [{address: erp@contoso.com}]\n")
		cmd := exec.Command(os.Args[0], "--config", file)
		cmd.Env = append(os.Environ(), "EXOSIM_TEST_RUN=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		line, err := r.ReadBytes('\n')
		var at addresses
		if err != nil || json.Unmarshal(line, &at) != nil || !strings.HasPrefix(at.TokenURL, at.Authority+"/contoso.onmicrosoft.com/") || at.CAFile != filepath.Join(filepath.Dir(file), "ca.pem") {
			t.Errorf("printed %q, %v", line, err)
		}
		if res, err := http.Get("http://" + at.Admin + "/messages"); err != nil || res.StatusCode != 200 {
			t.Errorf("admin: %v, %v", res, err)
		}
		for _, endpoint := range []string{"http://" + at.IMDS + "/metadata/identity/oauth2/token", at.AppService, at.Arc} {
			if res, err := http.Get(endpoint); err != nil || res.StatusCode != 400 && res.StatusCode != 401 {
				t.Errorf("%s: %v, %v", endpoint, res, err)
			}
		}
		for _, addr := range []string{at.Submission, at.MX} {
			if c, err := net.Dial("tcp", addr); err != nil {
				t.Error(err)
			} else {
				c.Close()
			}
		}
		if _, err := os.Stat(at.CAFile); err != nil {
			t.Error(err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("printed more: %q, %v", rest, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %v: %v", sig, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"help", []string{"-h"}, 0, "usage: exosim --config FILE"},
		{"no file", nil, 64, "usage: exosim --config FILE"},
		{"too much", []string{"--config", "x", "y"}, 64, "usage: exosim --config FILE"},
		{"unknown flag", []string{"--colour"}, 64, "flag provided but not defined"},
		{"missing file", []string{"--config", "/nonexistent/exosim.yaml"}, 78, "exosim: error: open /nonexistent/exosim.yaml"},
		{"unknown key", []string{"--config", config(t, "mailbxes: []")}, 78, `unknown field "mailbxes"`},
		{"address in use", []string{"--config", config(t, "submission: "+busy.Addr().String())}, 75, "address already in use"},
		{"stopped at once", []string{"--config", config(t, ""), "--verbose"}, 0, ""},
	} {
		var stdout, stderr strings.Builder
		if got := run(done, tc.args, &stdout, &stderr); got != tc.code || !strings.Contains(stderr.String(), tc.stderr) {
			t.Errorf("%s: exit code %d, stderr %q, want %d and %q", tc.name, got, stderr.String(), tc.code, tc.stderr)
		}
	}
}
