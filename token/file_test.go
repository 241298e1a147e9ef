package token

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// writeFile makes a file below a folder of the test.
func writeFile(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // past the umask
		t.Fatal(err)
	}
	return path
}

func TestReadSecret(t *testing.T) {
	for _, tc := range []struct {
		name, content, want string
		mode                os.FileMode
	}{
		{"plain", "abc~1+/&%", "abc~1+/&%", 0o600},
		{"newline", "abc\n", "abc", 0o640},
		{"Windows", "\ufeffabc\r\n", "abc", 0o400},
		{"blank at the end", "abc \n\n", "abc", 0o660},
	} {
		path := writeFile(t, "secret", tc.content, tc.mode)
		got, err := readSecret(path)
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: readSecret(%q) = %q, %v, want %q", tc.name, tc.content, string(got), err, tc.want)
		}
		if err := CheckSecretFile(path); err != nil {
			t.Errorf("%s: CheckSecretFile = %v, want nil", tc.name, err)
		}
	}
}

func TestSecretFileSentences(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ path, want string }{
		{writeFile(t, "s", "", 0o600), `is empty: write the Value of the client secret into it`},
		{writeFile(t, "s", "\n \n", 0o600), `is empty: write the Value`},
		{writeFile(t, "s", "one\ntwo\n", 0o600), `has blanks, several lines or bytes that are not text: write the Value`},
		{writeFile(t, "s", "sécret", 0o600), `bytes that are not text`},
		{writeFile(t, "s", "abc", 0o644), `is open to every user of this machine (mode 0644): type "chmod o= /`},
		{writeFile(t, "s", "abc", 0o601), `(mode 0601): type "chmod o= /`},
		{writeFile(t, "s", "abc", 0o602), `(mode 0602): type "chmod o= /`},
		{writeFile(t, "s", strings.Repeat("a", maxFile+1), 0o600), `is larger than 1 MiB`},
		{t.TempDir(), `is not a regular file: name the file itself`},
		{fifo, `is not a regular file`},
		{filepath.Join(t.TempDir(), "none"), `does not exist: create it, or correct its name in the configuration`},
	} {
		err := CheckSecretFile(tc.path)
		fe, ok := errors.AsType[*FileError](err)
		if !ok || fe.Path != tc.path || fe.Temporary() || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
			t.Errorf("CheckSecretFile(%q) = %v, want a *FileError with %q", tc.path, err, tc.want)
		}
	}
}

func TestUnreadable(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		// Root may read everything, so the kernel's word is made up here.
		{&os.PathError{Op: "open", Path: "/s", Err: syscall.EACCES}, `file "/s" may not be read by this service: give it to the group of its user, then type "chmod 0640 /s"`},
		{&os.PathError{Op: "open", Path: "/s", Err: syscall.EIO}, `file "/s" cannot be read: input/output error`},
	} {
		if got := unreadable("/s", tc.err).Error(); got != tc.want {
			t.Errorf("unreadable(%v) = %q, want %q", tc.err, got, tc.want)
		}
	}
}
