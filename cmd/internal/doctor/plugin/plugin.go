// Package plugin finds the plugins of Cyrus SASL that have to do with XOAUTH2, and says why one cannot
// be loaded. Nothing is loaded or run.
package plugin

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Name is the file name of the plugin of sendas, which brings XOAUTH2.
const Name = "libsendas-xoauth2.so"

// ClientInit is what Cyrus SASL looks for in a plugin for clients (sasl/saslplug.h).
const ClientInit = "sasl_client_plug_init"

// maxSize bounds what is read of a file that should be a plugin, in bytes.
const maxSize = 16 << 20

// A Found is a file of a plugin folder that brings XOAUTH2, or should.
type Found struct {
	Path    string
	Problem string // why it cannot be loaded, "" if it can
}

// MachineOf returns what plugins must be made for: the machine of the first of the programs that can
// be read; nil where none can.
func MachineOf(programs ...string) *elf.FileHeader {
	for _, f := range programs {
		if e, err := elf.Open(f); err == nil {
			defer e.Close()
			h := e.FileHeader
			return &h
		}
	}
	return nil
}

// In returns the files that Cyrus SASL would take for plugins and that have to do
// with XOAUTH2, in the order of the directory, in which libsasl2 loads them.
func In(folder string, machine *elf.FileHeader) ([]Found, error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	var list []Found
	for _, name := range names {
		if !strings.HasSuffix(name, ".so") {
			continue
		}
		path := filepath.Join(folder, name)
		brings, problem := read(path, machine)
		if brings || name == Name {
			list = append(list, Found{path, problem})
		}
	}
	return list, err
}

// read reports whether a file brings XOAUTH2, and why it cannot be loaded.
func read(path string, machine *elf.FileHeader) (brings bool, problem string) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxSize {
		return false, "is no regular file"
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return false, "cannot be read"
	}
	brings = bytes.Contains(data, []byte("XOAUTH2\x00"))
	e, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return brings, "is no shared library"
	}
	if machine != nil && (e.Machine != machine.Machine || e.Class != machine.Class || e.Data != machine.Data) {
		return brings, fmt.Sprintf("is made for another machine (%s, %s)", e.Machine, e.Class)
	}
	symbols, err := e.DynamicSymbols()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return brings, "has damaged symbols"
	}
	exports := slices.ContainsFunc(symbols, func(s elf.Symbol) bool { return s.Name == ClientInit && s.Section != elf.SHN_UNDEF })
	if !exports {
		// A plugin for servers alone is no fault, and is none of ours.
		return brings && filepath.Base(path) == Name, "has no " + ClientInit
	}
	return brings, ""
}
