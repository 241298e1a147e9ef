package doctor

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/doctor/plugin"
	"github.com/sendas/sendas/cmd/internal/finding"
)

// saslAdvice is about the plugin.
var saslAdvice = map[string]finding.Advice{
	"no-folder": {Means: "Cyrus SASL has no folder for plugins here", Do: "apt-get install libsasl2-modules; elsewhere the package is called cyrus-sasl-plain or cyrus-sasl"},
	"absent":    {Means: "Postfix knows no XOAUTH2, so it finds no mechanism to authenticate by", Do: "install the package of sendas, or: cp {plugin} {folder}/"},
	"foreign": {Means: "another package's plugin is taken; that of sasl-xoauth2 expects the name of a token file as the password, that of libsasl2-modules-kdexoauth2 does not work with Postfix",
		Do: "cp {plugin} {folder}/, and remove the other package, or have token files kept for sasl-xoauth2 (token.token_files)"},
	"twice":      {Means: "several plugins bring XOAUTH2, and Cyrus SASL takes the one that it loads first: {first}", Do: "remove the package of the others: dpkg -S {others}"},
	"unloadable": {Means: "Cyrus SASL passes over a plugin that it cannot load", Do: "put the plugin for this machine there: cp {plugin} {folder}/"},
	"unreadable": {Means: "the folder cannot be read", Do: "ls -ld {folder}"},
}

// checkPlugin looks for the plugin by which Postfix's smtp(8) speaks XOAUTH2. Nothing is loaded or
// run.
func (d *Walk) checkPlugin(context.Context) {
	s := d.Section("sasl", "SASL plugin")
	folders := d.pluginFolders()
	if len(folders) == 0 {
		s.Fail("folder", "folder", strings.Join(d.saslDirs, " ")+" are not there", saslAdvice["no-folder"])
		return
	}
	machine := d.machine()
	var found []plugin.Found
	for i, folder := range folders {
		list, err := plugin.In(folder, machine)
		if err != nil {
			s.Warn(fmt.Sprintf("folder.%d", i+1), folder, err.Error(), saslAdvice["unreadable"].With("folder", folder))
		}
		found = append(found, list...)
	}
	d.judgePlugins(s, folders[0], found)
}

// judgePlugins says what the plugins found in the order of loading amount to.
func (d *Walk) judgePlugins(s finding.Section, folder string, found []plugin.Found) {
	a := func(key string, pairs ...string) finding.Advice {
		return saslAdvice[key].With(append(pairs, "folder", folder, "plugin", plugin.Name)...)
	}
	var good, names []string
	ours := false
	for _, p := range found {
		if p.Problem != "" {
			s.Fail("loadable."+filepath.Base(p.Path), p.Path, p.Problem, a("unloadable"))
			continue
		}
		good, names = append(good, p.Path), append(names, filepath.Base(p.Path))
		ours = ours || filepath.Base(p.Path) == plugin.Name
	}
	switch {
	case len(good) == 0:
		s.Fail("present", "XOAUTH2", "no plugin in "+folder+" brings it", a("absent"))
	case !ours:
		s.Warn("present", "XOAUTH2", strings.Join(good, " "), a("foreign"))
	case len(good) > 1:
		others := slices.DeleteFunc(slices.Clone(good), func(p string) bool { return filepath.Base(p) == plugin.Name })
		s.Warn("present", "XOAUTH2", strings.Join(names, " "), a("twice", "first", names[0], "others", strings.Join(others, " ")))
	default:
		s.Ok("present", "XOAUTH2", "%s", good[0])
	}
}

var saslPathForm = regexp.MustCompile(`\bSASL_PATH\s*=\s*([^\s},]+)`)

// pluginFolders returns the folders of the plugins that are there: those of SASL_PATH, if Postfix
// passes it on to its programs, else the system's.
func (d *Walk) pluginFolders() []string {
	patterns := d.saslDirs
	if d.postfix != nil {
		if m := saslPathForm.FindStringSubmatch(d.postfix.Main["import_environment"]); m != nil {
			patterns = strings.Split(m[1], ":")
		}
	}
	var folders []string
	for _, p := range patterns {
		list, err := filepath.Glob(p)
		if err != nil {
			continue // a malformed pattern in SASL_PATH, which is no pattern there
		}
		for _, folder := range list {
			real, err := filepath.EvalSymlinks(folder)
			if info, statErr := os.Stat(folder); err == nil && statErr == nil && info.IsDir() && !slices.Contains(folders, real) {
				folders = append(folders, real)
			}
		}
	}
	return folders
}

// machine returns what plugins must be made for: the machine of Postfix's smtp(8), or else of this
// program; nil where neither is known.
func (d *Walk) machine() *elf.FileHeader {
	var files []string
	if d.postfix != nil {
		files = append(files, filepath.Join(d.postfix.Main["daemon_directory"], "smtp"))
	}
	if self, err := os.Executable(); err == nil {
		files = append(files, self)
	}
	return plugin.MachineOf(files...)
}
