package entra

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
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
		{"looks like a name", "Key8Q~x=y", "Key8Q~x=y", 0o600},
		{"old ones end in =", "dGhlIHNlY3JldA==", "dGhlIHNlY3JldA==", 0o600},
		{"a mark within", `a"b'c`, `a"b'c`, 0o600},
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
		{writeFile(t, "s", `"abc~x"`+"\n", 0o600), `has quotation marks around the secret, which are not in it: take them away`},
		{writeFile(t, "s", "'abc~x'", 0o600), `has quotation marks around the secret`},
		{writeFile(t, "s", "CLIENT_SECRET=abc~x\n", 0o600), `holds a name with its value, as for a shell (NAME=VALUE): write the Value`},
		{writeFile(t, "s", "export AZURE_CLIENT_SECRET='abc~x'\n", 0o600), `holds a name with its value`},
		{writeFile(t, "s", "client_secret: abc~x", 0o600), `holds a name with its value`},
		{writeFile(t, "s", "5f2c0d3e-0000-4000-8000-000000000001\r\n", 0o600), `holds an ID and not the secret: write its Value into it`},
		{writeFile(t, "s", "-----BEGIN PRIVATE KEY-----\nMIIE\n", 0o600), `holds a certificate or a key: name it under certificate_file:`},
		{writeFile(t, "s", "\xff\xfea\x00b\x00c\x00", 0o600), `is in UTF-16, as PowerShell and Notepad write it: type "iconv -f UTF-16 -t UTF-8 /`},
		{writeFile(t, "s", "abc", 0o644), `is open to every user of this machine (mode 0644): type "chmod o= /`},
		{writeFile(t, "s", "abc", 0o601), `(mode 0601): type "chmod o= /`},
		{writeFile(t, "s", "abc", 0o602), `(mode 0602): type "chmod o= /`},
		{writeFile(t, "s", strings.Repeat("a", MaxFile+1), 0o600), `is larger than 1 MiB`},
		{t.TempDir(), `is not a regular file: name the file itself`},
		{fifo, `is not a regular file`},
		{filepath.Join(t.TempDir(), "none"), `does not exist: create it, or correct its name in the configuration`},
	} {
		err := CheckSecretFile(tc.path)
		fe, ok := errors.AsType[*FileError](err)
		if !ok || fe.Path != tc.path || fe.Temporary() || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
			t.Errorf("CheckSecretFile(%q) = %v, want a *FileError with %q", tc.path, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "abc~x") {
			t.Errorf("CheckSecretFile(%q) = %v, which shows the secret", tc.path, err)
		}
	}
}

func TestUnreadable(t *testing.T) {
	for _, tc := range []struct {
		path string
		err  error
		want string
	}{
		// Root may read everything, so the kernel's word is made up here.
		{"/s", &os.PathError{Op: "open", Path: "/s", Err: syscall.EACCES}, `file "/s" may not be read by this service: give it to the group of its user, then type "chmod 0640 /s"`},
		{"/s", &os.PathError{Op: "open", Path: "/s", Err: syscall.EIO}, `file "/s" cannot be read: input/output error`},
		{"credential:s", &os.PathError{Op: "open", Path: "/run/credentials/x/s", Err: syscall.EACCES}, `file "credential:s" was handed over to another user than this service's: compare User= of the unit and restart the service`},
	} {
		if got := ours.unreadable(tc.path, tc.err).Error(); got != tc.want {
			t.Errorf("unreadable(%q, %v) = %q, want %q", tc.path, tc.err, got, tc.want)
		}
	}
}

func TestResolveFile(t *testing.T) {
	const dir = "/run/credentials/sendas-token.service"
	for _, tc := range []struct{ name, dir, want string }{
		{"/etc/sendas/secret", dir, "/etc/sendas/secret"},
		{"/etc/sendas/secret", "", "/etc/sendas/secret"},
		{"", dir, ""},
		{"credential:relay-app.secret", dir, dir + "/relay-app.secret"},
		{"credential:..x", dir, dir + "/..x"},
	} {
		t.Setenv("CREDENTIALS_DIRECTORY", tc.dir)
		if got, err := ResolveFile(tc.name); err != nil || got != tc.want {
			t.Errorf("ResolveFile(%q) with CREDENTIALS_DIRECTORY=%q = %q, %v, want %q", tc.name, tc.dir, got, err, tc.want)
		}
	}
}

func TestResolveFileSentences(t *testing.T) {
	const dir = "/run/credentials/sendas-token.service"
	const notName = `is not the name of a credential: write credential:NAME as in LoadCredential=NAME:/FILE of the unit`
	const none = `stands for a credential of systemd's, and this process was handed none: type "systemctl edit sendas-token", write LoadCredential=relay:/FILE below [Service], and restart the service`
	for _, tc := range []struct {
		name, dir, want string
		noCredentials   bool
	}{
		{"credential:relay", "", none, true},
		{"credential:relay", "relative", none, true},
		{"credential:", dir, notName, false},
		{"credential:.", dir, notName, false},
		{"credential:..", dir, notName, false},
		{"credential:../../../etc/shadow", dir, notName, false},
		{"credential:/etc/shadow", dir, notName, false},
		{"credential:a:b", dir, notName, false},
		{"credential:a b", dir, notName, false},
		{"credential:é", dir, notName, false},
		{"credential:" + strings.Repeat("x", 256), dir, notName, false},
	} {
		t.Setenv("CREDENTIALS_DIRECTORY", tc.dir)
		got, err := ResolveFile(tc.name)
		want := fmt.Sprintf("file %q %s", tc.name, tc.want)
		if fe, ok := errors.AsType[*FileError](err); !ok || fe.Path != tc.name || got != "" || err.Error() != want || errors.Is(err, ErrNoCredentials) != tc.noCredentials {
			t.Errorf("ResolveFile(%q) with CREDENTIALS_DIRECTORY=%q = %q, %v\nwant %s", tc.name, tc.dir, got, err, want)
		}
	}
}

// systemd gives the files mode 0400 and the folder 0500, or 0440 and 0550 with an entry
// for the user; a rotated one is there after a restart of the unit.
func TestSystemdCredential(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	path := filepath.Join(dir, "relay")
	for _, tc := range []struct {
		content string
		mode    os.FileMode
	}{{"first", 0o400}, {"second", 0o440}} {
		os.Remove(path)
		if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tc.mode); err != nil {
			t.Fatal(err)
		}
		if got, err := readSecret("credential:relay"); err != nil || string(got) != tc.content {
			t.Errorf("credential with mode %o: %q, %v, want %q", tc.mode, string(got), err, tc.content)
		}
	}
	want := `file "credential:other" is not among the credentials that systemd handed over: type "systemctl edit sendas-token", write LoadCredential=other:/FILE`
	if err := CheckSecretFile("credential:other"); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("a credential that is not there: %v\nwant %s", err, want)
	}
	cert := certPEM(t, firstKey(), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err := os.WriteFile(filepath.Join(dir, "app.pem"), []byte(cert+pkcs8(t, firstKey())), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := CheckCertificate("credential:app.pem", ""); err != nil {
		t.Errorf("a certificate as credential: %v, want nil", err)
	}
}
