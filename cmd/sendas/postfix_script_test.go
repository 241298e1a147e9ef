package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sendas/sendas/cmd/internal/postfix/postfixtest"
)

// TestPostfixScripts runs the stories of testdata/postfix with the real postconf(1) and postfix(1).
// "postfix" is "sendas postfix" on the instance of the script; "original" notes what main.cf and
// master.cf are now, "unchanged" wants them to be that; "append FILE LINE" adds a line.
func TestPostfixScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/postfix",
		Setup: func(e *testscript.Env) error {
			etc, state := filepath.Join(e.WorkDir, "pf/etc"), filepath.Join(e.WorkDir, "state/x.json")
			e.Setenv("PATH", e.Getenv("PATH")+":/usr/sbin:/sbin")
			e.Setenv("ETC", etc)
			e.Setenv("STATE", state)
			return postfixtest.NewInstance(e.WorkDir)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"postfix":   typePostfix,
			"append":    appendLine,
			"original":  func(ts *testscript.TestScript, _ bool, _ []string) { eachFile(ts, copyOriginal) },
			"unchanged": func(ts *testscript.TestScript, _ bool, _ []string) { eachFile(ts, compareOriginal) },
		},
	})
}

// typePostfix runs "sendas postfix" for the instance of the script.
func typePostfix(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs("pf/etc")
	line := append([]string{"postfix", args[0], "--config", "sendas.yaml", "--postfix-config", dir, "--state", ts.MkAbs("state/x.json")}, args[1:]...)
	if err := ts.Exec("sendas", line...); (err != nil) != neg {
		ts.Fatalf("sendas postfix %q: %v", args, err)
	}
}

func appendLine(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_APPEND|os.O_WRONLY, 0)
	ts.Check(err)
	_, err = fmt.Fprintln(f, args[1])
	ts.Check(errors.Join(err, f.Close()))
}

func eachFile(ts *testscript.TestScript, do func(ts *testscript.TestScript, file, original string)) {
	for _, name := range []string{"main.cf", "master.cf"} {
		do(ts, ts.MkAbs("pf/etc/"+name), ts.MkAbs("pf/original/"+name))
	}
}

func copyOriginal(ts *testscript.TestScript, file, original string) {
	data, err := os.ReadFile(file)
	ts.Check(err)
	ts.Check(os.WriteFile(original, data, 0o644))
}

func compareOriginal(ts *testscript.TestScript, file, original string) {
	a, err := os.ReadFile(file)
	ts.Check(err)
	b, err := os.ReadFile(original)
	ts.Check(err)
	if !bytes.Equal(a, b) {
		ts.Fatalf("%s has changed:\n%s", file, a)
	}
}
