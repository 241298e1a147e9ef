package classes

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/policy"
)

// TestSave: the file is there whole, and for those who may read sendas.yaml.
func TestSave(t *testing.T) {
	dir := t.TempDir()
	path, like := filepath.Join(dir, "classes.json"), filepath.Join(dir, "sendas.yaml")
	data := &policy.ClassData{Version: policy.ClassVersion, Local: []string{"shop.example"}, Aliases: map[string][]string{`"a<b"@x.example`: {"<&>"}}}
	for _, mode := range []os.FileMode{0o640, 0o600, 0o664, 0o755} {
		if err := os.WriteFile(like, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(like, mode); err != nil {
			t.Fatal(err)
		}
		if err := Save(path, like, data); err != nil {
			t.Fatal(err)
		}
		if got, want := mustStat(t, path).Mode(), mode&0o644; got != want {
			t.Errorf("mode %04o beside %04o, want %04o", got, mode, want)
		}
	}
	got, err := Load(path)
	if err != nil || !same(got, data) {
		t.Errorf("read back as %+v, %v", got, err)
	}
}

// TestLoadRefuses: nothing is taken from a file that others can change, or that is another thing.
func TestLoadRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "classes.json")
	for _, tc := range []struct {
		text string
		mode os.FileMode
		want string
	}{
		{`{"version": 1}`, 0o646, "can be changed by others (mode 0646)"},
		{`{"version": 2}`, 0o644, "has the form 2, and this version of sendas knows 1"},
		{`{"version": "x"}`, 0o644, "reading "},
		{``, 0o644, "reading "},
	} {
		if err := os.WriteFile(path, []byte(tc.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tc.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s, %04o: %v, want %s", tc.text, tc.mode, err, tc.want)
		}
	}
	if _, err := Load(filepath.Dir(path)); err == nil {
		t.Error("a folder was taken for a file")
	}
}

// TestWatch: the milter has what the file says, within seconds; a broken one changes nothing.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	path, like := filepath.Join(dir, "classes.json"), filepath.Join(dir, "sendas.yaml")
	if err := os.WriteFile(like, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	log := &logtest.Buffer{}
	var used []*policy.Classes
	w := &watcher{path: func() string { return path }, log: slog.New(slog.NewTextHandler(log, nil)), use: func(c *policy.Classes) { used = append(used, c) }}
	save := func(domain string) {
		t.Helper()
		if err := Save(path, like, &policy.ClassData{Version: policy.ClassVersion, Local: []string{domain}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		what string
		do   func()
		n    int  // how often something was handed over by now
		none bool // it is that there is no file
	}{
		{"no file", func() {}, 1, true},
		{"still none", func() {}, 1, true},
		{"a file", func() { save("a.example") }, 2, false},
		{"the same", func() {}, 2, false},
		{"another of the same size", func() { save("b.example") }, 3, false},
		{"a broken one", func() { os.WriteFile(path, []byte("{"), 0o644) }, 3, false},
		{"still broken", func() {}, 3, false},
		{"a good one", func() { save("c.example") }, 4, false},
		{"gone", func() { os.Remove(path) }, 5, true},
	} {
		step.do()
		w.look()
		if len(used) != step.n || (used[len(used)-1] == nil) != step.none {
			t.Errorf("%s: handed over %d times, none: %t; want %d, %t", step.what, len(used), used[len(used)-1] == nil, step.n, step.none)
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("the broken file was logged %d times:\n%s", n, log)
	}
}

// TestWatchGoesOn: the file is looked at again and again, until the end.
func TestWatchGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "classes.json")
		var looks atomic.Int32
		ctx := t.Context()
		Watch(ctx, func() string { looks.Add(1); return path }, slog.New(slog.DiscardHandler), func(*policy.Classes) {})
		if n := looks.Load(); n != 1 {
			t.Errorf("%d looks before it returns", n)
		}
		time.Sleep(3*Interval + Interval/2) // of the bubble: at once
		synctest.Wait()
		if n := looks.Load(); n != 4 {
			t.Errorf("%d looks in three intervals", n)
		}
	})
}
