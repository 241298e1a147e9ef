package doctor

import (
	"bytes"
	"context"
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/doctor/plugin"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/token/sasl"
)

// compiled is our plugin, made by the C compiler once.
var compiled = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "sendas-doctor-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path, err := sasl.Build(context.Background(), dir)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// buildPlugin returns our plugin.
func buildPlugin(t *testing.T) []byte {
	t.Helper()
	b, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// changed replaces the first of the bytes in a file by as many others.
func changed(t *testing.T, b []byte, old, by string) []byte {
	t.Helper()
	if !bytes.Contains(b, []byte(old)) || len(old) != len(by) {
		t.Fatalf("%q cannot become %q", old, by)
	}
	return bytes.ReplaceAll(b, []byte(old), []byte(by))
}

// forOtherMachine changes e_machine (elf(5)) to one that no test runs on.
func forOtherMachine(b []byte) []byte {
	b = bytes.Clone(b)
	b[18], b[19] = byte(elf.EM_68K), 0
	return b
}

func TestDoctorPlugin(t *testing.T) {
	ours := buildPlugin(t)
	foreign := changed(t, ours, "sendas", "somebo") // what another package would have
	for _, tc := range []struct {
		name   string
		files  map[string][]byte
		id     string
		status finding.Status
		words  string
	}{
		{"good", map[string][]byte{plugin.Name: ours, "libplain.so": []byte("x"), plugin.Name + ".0": ours, "README": ours}, "present", finding.OK, plugin.Name},
		{"empty folder", map[string][]byte{"libplain.so": []byte("x")}, "present", finding.Fail, "finds no mechanism"},
		{"foreign alone", map[string][]byte{"libsasl-xoauth2.so": foreign}, "present", finding.Warn, "libsasl-xoauth2.so"},
		{"two", map[string][]byte{plugin.Name: ours, "libkdexoauth2plugin.so": foreign}, "present", finding.Warn, "loads first"},
		{"other machine", map[string][]byte{plugin.Name: forOtherMachine(ours)}, "loadable." + plugin.Name, finding.Fail, "EM_68K"},
		{"no entry point", map[string][]byte{plugin.Name: changed(t, ours, plugin.ClientInit, "sasl_client_plug_inix")}, "loadable." + plugin.Name, finding.Fail, "has no " + plugin.ClientInit},
		{"text", map[string][]byte{plugin.Name: []byte("<html>")}, "loadable." + plugin.Name, finding.Fail, "no shared library"},
		{"cut off", map[string][]byte{plugin.Name: ours[:300]}, "loadable." + plugin.Name, finding.Fail, ""},
		{"foreign for servers", map[string][]byte{plugin.Name: ours, "libserver.so": changed(t, foreign, plugin.ClientInit, "sasl_client_plug_inix")}, "present", finding.OK, plugin.Name},
	} {
		dir := t.TempDir()
		for name, content := range tc.files {
			configtest.WriteFile(t, filepath.Join(dir, name), string(content), 0o644)
		}
		w := emptyWorld()
		w.saslDirs = []string{filepath.Join(dir, "nothing*"), dir}
		d := New(&Options{Stdout: &bytes.Buffer{}}, w)
		d.checkPlugin(t.Context())
		findingtest.WantWhole(t, &d.Report)
		d.wantCheck(t, "sasl."+tc.id, tc.status, tc.words)
		if t.Failed() {
			t.Fatalf("%s", tc.name)
		}
	}
}

// Which plugin is loaded first is told in the order of the folder, as libsasl2 reads it.
func TestDoctorPluginOrder(t *testing.T) {
	ours := buildPlugin(t)
	dir := t.TempDir()
	for _, name := range []string{plugin.Name, "liba.so", "libz.so"} {
		configtest.WriteFile(t, filepath.Join(dir, name), string(ours), 0o644)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	w := emptyWorld()
	w.saslDirs = []string{dir}
	d := New(&Options{Stdout: &bytes.Buffer{}}, w)
	d.checkPlugin(t.Context())
	d.wantCheck(t, "sasl.present", finding.Warn, strings.Join(names, " "), "loads first: "+names[0], filepath.Join(dir, "liba.so"))
	if strings.Contains(d.find(t, "sasl.present").Do, plugin.Name) {
		t.Errorf("the doctor would remove our plugin: %s", d.find(t, "sasl.present").Do)
	}
}

// Postfix passes SASL_PATH on only where import_environment says so.
func TestDoctorPluginFolders(t *testing.T) {
	system, own := t.TempDir(), t.TempDir()
	for _, tc := range []struct{ environment, want string }{
		{"MAIL_CONFIG TZ", system},
		{"MAIL_CONFIG { SASL_PATH = " + own + " }", own},
		{"MAIL_CONFIG SASL_PATH=/nothing:" + own, own},
	} {
		w := emptyWorld()
		w.saslDirs = []string{system}
		d := New(&Options{Stdout: &bytes.Buffer{}}, w)
		d.postfix = &postfix.Setup{Main: map[string]string{"import_environment": tc.environment}}
		if got := d.pluginFolders(); len(got) != 1 || got[0] != tc.want {
			t.Errorf("import_environment %q: folders %q, want %q", tc.environment, got, tc.want)
		}
	}
}
