package safefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// another is an owner to whom this process can give a file.
func another() *Owner {
	if os.Geteuid() == 0 {
		return &Owner{12345, 23456}
	}
	return &Owner{os.Geteuid(), os.Getegid()}
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// names returns what a folder holds, in order.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

func TestWrite(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	past := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		name string
		o    Options
		mode fs.FileMode
	}{
		{"as it comes", Options{}, 0o600},
		{"past the umask", Options{Mode: 0o644}, 0o644},
		{"less than the umask allows", Options{Mode: 0o400}, 0o400},
		{"given away", Options{Mode: 0o640, Owner: another()}, 0o640},
		{"old already", Options{Time: past}, 0o600},
		{"a name of its own for the temporary file", Options{Temp: ".x"}, 0o600},
		{"many names for it", Options{Temp: ".x-*.tmp"}, 0o600},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		for _, text := range []string{"first", "second, which is longer"} {
			if err := Write(path, []byte(text), tc.o); err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
			info, err := os.Lstat(path)
			if err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
			got, _ := os.ReadFile(path)
			if string(got) != text || info.Mode() != tc.mode || names(t, dir) != "file" {
				t.Errorf("%s: %q with mode %v in a folder with %q, want %q with %v and nothing beside it", tc.name, got, info.Mode(), names(t, dir), text, tc.mode)
			}
			if tc.o.Owner != nil && OwnerOf(info) != *tc.o.Owner {
				t.Errorf("%s: belongs to %v, want %v", tc.name, OwnerOf(info), *tc.o.Owner)
			}
			if !tc.o.Time.IsZero() && !info.ModTime().Equal(past) {
				t.Errorf("%s: last changed on %v, want %v", tc.name, info.ModTime(), past)
			}
		}
	}
}

// Until the last step nobody sees anything of the new file but its owner.
func TestReady(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write(t, path, "old", 0o644)
	no := errors.New("no")
	for _, tc := range []struct{ err, want error }{{no, no}, {nil, nil}} {
		err := Write(path, []byte("new"), Options{Mode: 0o440, Owner: another(), Temp: "temp", Ready: func() error {
			info, err := os.Lstat(filepath.Join(dir, "temp"))
			if err != nil {
				t.Fatal(err)
			}
			old, _ := os.ReadFile(path)
			if string(old) != "old" || info.Size() != 3 || info.Mode() != 0o440 || OwnerOf(info) != *another() {
				t.Errorf("before the last step: %q is there, and the new one has %d bytes, mode %v and owner %v", old, info.Size(), info.Mode(), OwnerOf(info))
			}
			return tc.err
		}})
		got, _ := os.ReadFile(path)
		if want := map[bool]string{true: "old", false: "new"}[tc.err != nil]; err != tc.want || string(got) != want || names(t, dir) != "file" {
			t.Errorf("Ready says %v: %v, %q in a folder with %q; want %v and %q alone", tc.err, err, got, names(t, dir), tc.want, want)
		}
	}
}

func TestReplaceKeeps(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(t.TempDir(), "link")
	write(t, target, "old", 0o664)
	owner := another()
	if err := errors.Join(os.Chown(target, owner.UID, owner.GID), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := Replace(link, []byte("new"), Options{Mode: 0o600, Owner: &Owner{1, 1}}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(target)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(link)
	if to, err := os.Readlink(link); string(got) != "new" || to != target || err != nil || info.Mode() != 0o664 || OwnerOf(info) != *owner {
		t.Errorf("%q with mode %v and owner %v, the link leads to %q; want the new text, and all else as it was", got, info.Mode(), OwnerOf(info), to)
	}
	// Write puts the file in the place of a link: whoever made that cannot choose another file to
	// be overwritten.
	if err := Write(link, []byte("own"), Options{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(target); string(got) != "new" {
		t.Errorf("Write went through a link: %q", got)
	}
}

// What a killed process has left under the one name goes; under other names it stays.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "temp"), "half of a fi", 0o600)
	write(t, filepath.Join(dir, "other"), "x", 0o600)
	if err := Write(filepath.Join(dir, "file"), []byte("whole"), Options{Temp: "temp"}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); got != "file other" {
		t.Errorf("the folder holds %q", got)
	}
}

func TestError(t *testing.T) {
	full := func(t *testing.T) string { // a file that may not grow, as on a full disk
		var was syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 3, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was) })
		return filepath.Join(t.TempDir(), "file")
	}
	unprivileged := func(t *testing.T) string { // by one who may not give files away: setfsuid(2) takes that from root
		dir := t.TempDir()
		if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o777)); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			runtime.LockOSThread()
			t.Cleanup(func() { syscall.Setfsuid(0); runtime.UnlockOSThread() })
			if err := syscall.Setfsuid(12345); err != nil {
				t.Fatal(err)
			}
		}
		return filepath.Join(dir, "file")
	}
	for _, tc := range []struct {
		name string
		path func(t *testing.T) string
		o    Options
		step Step
		is   error
		want string // in its text; DIR is the folder
	}{
		{"no folder", func(t *testing.T) string { return filepath.Join(t.TempDir(), "none", "file") }, Options{}, Create, fs.ErrNotExist, "DIR: no such file"},
		{"the temporary name is taken", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.MkdirAll(filepath.Join(filepath.Dir(path), "temp", "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			return path
		}, Options{Temp: "temp"}, Create, syscall.ENOTEMPTY, "remove DIR/temp: "},
		{"another's file", unprivileged, Options{Owner: &Owner{0, 0}, Temp: "temp"}, Own, syscall.EPERM, "chown DIR/temp: "},
		{"a full disk", full, Options{Temp: "temp"}, Fill, syscall.EFBIG, "write DIR/temp: "},
		{"a folder in the way", func(t *testing.T) string { return t.TempDir() }, Options{Temp: "temp"}, Place, syscall.EEXIST, "rename DIR/temp "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := tc.path(t)
			dir := filepath.Dir(path)
			err := Write(path, []byte("content"), tc.o)
			e, ok := errors.AsType[*Error](err)
			if want := strings.ReplaceAll(tc.want, "DIR", dir); !ok || e.Step != tc.step || !errors.Is(err, tc.is) || !strings.Contains(err.Error(), want) {
				t.Fatalf("%v at step %+v, want %q at %d", err, e, want, tc.step)
			}
			if info, err := os.Lstat(filepath.Join(dir, "temp")); err == nil && !info.IsDir() {
				t.Error("the temporary file stayed")
			}
		})
	}
}
