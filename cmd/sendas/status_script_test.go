package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestStatusScripts runs the stories of testdata/script-status, with services that answer at $TOKEN
// and $MILTER what testdata/services holds.
func TestStatusScripts(t *testing.T) {
	var requests atomic.Int64
	serve := func(file string) string {
		answer, err := os.ReadFile(filepath.Join("testdata", "services", file))
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			if r.URL.Path == "/healthz" {
				fmt.Fprintln(w, "ok")
				return
			}
			w.Write(answer)
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	tokenAt, milterAt := serve("token.json"), serve("milter.json")
	gone := httptest.NewServer(nil)
	nobody := gone.Listener.Addr().String()
	gone.Close()
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script-status",
		UpdateScripts: *updateScripts,
		Setup: func(e *testscript.Env) error {
			e.Setenv("TOKEN", tokenAt)
			e.Setenv("MILTER", milterAt)
			e.Setenv("NOBODY", nobody)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// asked waits until a command has looked so many times more: it asks three questions.
			"asked": func(ts *testscript.TestScript, _ bool, args []string) {
				n, err := strconv.ParseInt(args[0], 10, 64)
				ts.Check(err)
				for want, tries := requests.Load()+3*n, 0; requests.Load() < want; tries++ {
					if tries > 12000 {
						ts.Fatalf("nobody asked")
					}
					time.Sleep(10 * time.Millisecond)
				}
			},
			// expand writes the variables of the environment into a file.
			"expand": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, f := range args {
					ts.Check(os.WriteFile(ts.MkAbs(f), []byte(os.Expand(ts.ReadFile(f), ts.Getenv)), 0o644))
				}
			},
		},
	})
}
