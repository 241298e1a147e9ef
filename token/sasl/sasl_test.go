package sasl

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// buildPlugin builds the plugin into a folder of its own.
func buildPlugin(t *testing.T) (path string) {
	t.Helper()
	path, err := Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatalf("%v\na C compiler and libsasl2's headers are needed: run make deps", err)
	}
	return path
}

// buildDriver builds the C program that drives the plugin through libsasl2.
func buildDriver(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "xoauth2_test")
	err := compile(t.Context(), []string{"-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror",
		"-o", out, "xoauth2_test.c", "-lsasl2"})
	if err != nil {
		t.Fatalf("%v\na C compiler and libsasl2's headers are needed: run make deps", err)
	}
	return out
}

// runDriver runs the driver, or a command in front of it, with the plugin's
// folder as the only one that libsasl2 looks into.
func runDriver(t *testing.T, plugin string, argv ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "SASL_PATH="+filepath.Dir(plugin))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !regexp.MustCompile(`(?m)^[1-9][0-9]+ cases, 0 failed$`).Match(out) {
		t.Errorf("the driver did not finish well:\n%s", out)
	}
}

func TestPluginInLibsasl2(t *testing.T) {
	runDriver(t, buildPlugin(t), buildDriver(t))
}

func TestPluginUnderValgrind(t *testing.T) {
	valgrind, err := exec.LookPath("valgrind")
	if err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	runDriver(t, buildPlugin(t), valgrind, "--quiet", "--error-exitcode=99", "--leak-check=full",
		"--errors-for-leak-kinds=definite,indirect,possible", buildDriver(t))
}

// TestDriverNoticesMissingPlugin keeps the tests above from passing with
// another XOAUTH2 of the system's, or with none.
func TestDriverNoticesMissingPlugin(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), buildDriver(t))
	cmd.Env = append(os.Environ(), "SASL_PATH="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("the driver is content without the plugin:\n%s", out)
	}
}

func TestPluginExportsOnlyItsEntryPoint(t *testing.T) {
	f := openELF(t, buildPlugin(t))
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range symbols {
		if s.Section != elf.SHN_UNDEF {
			got = append(got, s.Name)
		}
	}
	if want := []string{"sasl_client_plug_init"}; !slices.Equal(got, want) {
		t.Errorf("exported symbols = %q, want %q", got, want)
	}
}

func TestPluginIsHardened(t *testing.T) {
	f := openELF(t, buildPlugin(t))
	if v, err := f.DynValue(elf.DT_FLAGS); err != nil || len(v) != 1 || elf.DynFlag(v[0])&elf.DF_BIND_NOW == 0 {
		t.Errorf("DT_FLAGS = %v, %v; want BIND_NOW", v, err)
	}
	types := map[elf.ProgType]elf.ProgFlag{}
	for _, p := range f.Progs {
		types[p.Type] = p.Flags
	}
	if _, ok := types[elf.PT_GNU_RELRO]; !ok {
		t.Error("no PT_GNU_RELRO")
	}
	if flags, ok := types[elf.PT_GNU_STACK]; !ok || flags&elf.PF_X != 0 {
		t.Errorf("PT_GNU_STACK = %v, %v; want it there and not executable", flags, ok)
	}
	// libsasl2 hands its functions over; a plugin linked to another copy of it
	// would drag that into smtp(8).
	libs, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range libs {
		if strings.HasPrefix(lib, "libsasl") {
			t.Errorf("the plugin is linked to %s", lib)
		}
	}
}

func openELF(t *testing.T, path string) *elf.File {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestBuildHonoursTheEnvironment(t *testing.T) {
	t.Setenv("CPPFLAGS", "-include /nonexistent/sendas.h")
	_, err := Build(t.Context(), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/sendas.h") {
		t.Errorf("Build with a bad CPPFLAGS: got %v, want the compiler's words", err)
	}
}
