package cf

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
)

func TestStateName(t *testing.T) {
	for _, tc := range [][3]string{{"", "/etc/postfix", "etc-postfix.json"}, {"postfix-out", "/etc/postfix-out", "postfix-out.json"}, {"", "/", "root.json"}, {"../x", "/y", "..-x.json"}} {
		if got := StateName(tc[0], tc[1]); got != tc[2] {
			t.Errorf("StateName(%q, %q) = %q, want %q", tc[0], tc[1], got, tc[2])
		}
	}
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	file := configtest.WriteFile(t, filepath.Join(dir, "real", "main.cf"), "old\n", 0o640)
	if err := os.Chown(file, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "main.cf")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := Replace(link, []byte("new\n")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o640 || ownedAlone(info) {
		t.Errorf("mode %v and owner are not what they were", info.Mode())
	}
	if data, _ := os.ReadFile(link); string(data) != "new\n" {
		t.Errorf("content %q", data)
	}
	if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if to, _ := os.Readlink(link); to != file {
		t.Error("the link is gone")
	}
}
