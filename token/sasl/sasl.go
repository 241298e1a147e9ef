// Package sasl holds the source of libsendas-xoauth2.so, the Cyrus SASL plugin
// that lets Postfix's smtp(8) authenticate with XOAUTH2, and builds it for
// tests and demonstrations. The Makefile builds the one that is installed,
// from the same source with the same flags.
package sasl

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Plugin is the plugin's file name. libsasl2 opens every file of its plugin
// folder that ends in .so, and cuts the name it shows out of this one.
const Plugin = "libsendas-xoauth2.so"

//go:embed xoauth2.c
var source []byte

//go:embed cc.flags
var flags []byte

// Build compiles the plugin into the folder dir and returns the file's path.
// CC, CPPFLAGS, CFLAGS and LDFLAGS of the environment are used as make uses
// them. The error says what the compiler said.
func Build(ctx context.Context, dir string) (string, error) {
	src, err := os.MkdirTemp("", "sendas-sasl-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(src)
	err = errors.Join(
		os.WriteFile(filepath.Join(src, "xoauth2.c"), source, 0o600),
		os.WriteFile(filepath.Join(src, "cc.flags"), flags, 0o600))
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, Plugin)
	args := append([]string{"@" + filepath.Join(src, "cc.flags")}, userFlags()...)
	args = append(args, "-o", out, filepath.Join(src, "xoauth2.c"))
	return out, compile(ctx, args)
}

// userFlags are what the environment adds, in make's order.
func userFlags() []string {
	var f []string
	for _, name := range []string{"CPPFLAGS", "CFLAGS", "LDFLAGS"} {
		f = append(f, strings.Fields(os.Getenv(name))...)
	}
	return f
}

// compile runs the C compiler. CC may hold arguments, as in "ccache gcc".
func compile(ctx context.Context, args []string) error {
	cc := strings.Fields(os.Getenv("CC"))
	if len(cc) == 0 {
		cc = []string{"cc"}
	}
	cmd := exec.CommandContext(ctx, cc[0], append(cc[1:], args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("building %s: %w\n%s", Plugin, err, bytes.TrimSpace(out))
	}
	return nil
}
