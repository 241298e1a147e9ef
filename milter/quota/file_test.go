package quota

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// shortLock is how long the tests wait for a file that is locked.
const shortLock = 20 * time.Millisecond

func mustOpenFile(t *testing.T, path string) *File {
	t.Helper()
	f, err := openAdmissionFile(path, shortLock)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// fill makes a file of many keys and closes it.
func fill(t *testing.T, path string) {
	t.Helper()
	f := mustOpenFile(t, path)
	a, q := mustOpen(t, f), Rates{Messages: mustRates(t, "5/d")}
	for i := range 3 * saveBatch {
		submit(t, a, fmt.Sprint("key", i), q, 1, dawn)
	}
	mustSave(t, a)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFileRemembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admission.db")
	fill(t, path)
	f := mustOpenFile(t, path)
	a, q := mustOpen(t, f), Rates{Messages: mustRates(t, "5/d")}
	if got := a.Keys(); got != 3*saveBatch {
		t.Errorf("%d keys are there after a restart, want %d", got, 3*saveBatch)
	}
	submit(t, a, "key7", q, 1, dawn.Add(23*time.Hour))
	submit(t, a, "", q, 1, dawn.Add(23*time.Hour)) // no key that bbolt would take
	submit(t, a, strings.Repeat("x", bbolt.MaxKeySize), q, 1, dawn.Add(23*time.Hour))
	for range 10 {
		a.tidy(dawn.Add(27 * time.Hour)) // forgets the others
	}
	mustSave(t, a)
	f.Close()
	f = mustOpenFile(t, path)
	defer f.Close()
	a = mustOpen(t, f)
	if a.Keys() != 2 || a.Usage("key7", dawn.Add(27*time.Hour))[0].Counted != 1 || a.Usage("", dawn.Add(27*time.Hour))[0].Counted != 1 {
		t.Errorf("%d keys are there after another restart, want key7 and the empty one", a.Keys())
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v, want mode 0600", info.Mode(), err)
	}
}

func TestFileThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "passwd")
	if err := os.WriteFile(text, []byte(strings.Repeat("root:x:0:0:root:/root:/bin/bash\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.db")
	db, err := bbolt.Open(other, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("meta")); return err })
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	used := filepath.Join(dir, "used.db")
	defer mustOpenFile(t, used).Close()
	for _, tc := range []struct{ path, want string }{
		{text, "is no file of admission counts; give another name, or move it away"},
		{other, "belongs to another program; give another name"},
		{used, "is in use by another process"},
		{filepath.Join(dir, "none", "x.db"), "no such file or directory"},
	} {
		before, _ := os.ReadFile(tc.path)
		_, err := openAdmissionFile(tc.path, shortLock)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("opening %s: %v, want %q", filepath.Base(tc.path), err, tc.want)
		}
		if after, _ := os.ReadFile(tc.path); string(before) != string(after) {
			t.Errorf("%s was changed", filepath.Base(tc.path))
		}
	}
}

// damageFile overwrites everything but the two metadata pages.
func damageFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize())
	if _, err := f.WriteAt([]byte(strings.Repeat("\xee", int(info.Size()-2*page))), 2*page); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedFileIsReplaced(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, path string)
	}{
		{"pages overwritten", damageFile},
		{"cut off", func(t *testing.T, path string) {
			if err := os.Truncate(path, int64(3*os.Getpagesize())); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "admission.db")
			fill(t, path)
			tc.damage(t, path)
			f := mustOpenFile(t, path)
			if f.Replaced == nil || !strings.HasPrefix(f.Replaced.Error(), "damaged: ") {
				t.Errorf("Replaced = %v, want what was damaged", f.Replaced)
			}
			if _, err := os.Stat(path + ".damaged"); err != nil {
				t.Errorf("the damaged file was not kept: %v", err)
			}
			a := mustOpen(t, f)
			submit(t, a, "x", Rates{Messages: mustRates(t, "1/d")}, 1, dawn)
			mustSave(t, a)
			f.Close()
			f = mustOpenFile(t, path)
			defer f.Close()
			if a := mustOpen(t, f); a.Keys() != 1 || f.Replaced != nil {
				t.Errorf("the new file holds %d keys, replaced: %v; want 1", a.Keys(), f.Replaced)
			}
		})
	}
}

func TestFileThatIsDamagedWhileOpenIsAnErrorEachTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admission.db")
	fill(t, path)
	f := mustOpenFile(t, path)
	damageFile(t, path)
	for range 2 { // the second must not wait for a lock that nobody gives back
		if err := f.Load(t.Context(), func(string, []byte) {}); err == nil {
			t.Error("Load reads a damaged file")
		}
		if err := f.Save(t.Context(), map[string][]byte{"x": {1}}); err == nil {
			t.Error("Save writes to a damaged file")
		}
	}
	if err := f.Close(); err == nil {
		t.Error("Close hides that the file is damaged")
	}
}
