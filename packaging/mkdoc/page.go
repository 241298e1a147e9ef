package main

import (
	"path"
	"regexp"
	"strings"
)

// repository is where what the packages leave out can be read.
const repository = "https://github.com/sendas/sendas/"

// installed returns where the packages put a file of the source, or "" when they leave it out.
func installed(source string) string {
	dir, name := path.Split(source)
	switch {
	case source == "README.md", strings.HasPrefix(source, "docs/") && path.Ext(name) == ".md":
		return "/usr/share/doc/sendas/" + source
	case source == "packaging/sendas.yaml":
		return "/usr/share/sendas/" + name
	case shared.MatchString(dir) && shippedFile.MatchString(name) && !strings.HasSuffix(name, ".test.yml"):
		return "/usr/share/sendas/" + strings.TrimPrefix(source, "contrib/")
	}
	return ""
}

var (
	shared      = regexp.MustCompile(`^contrib/(exchange|prometheus|grafana)/$`)
	shippedFile = regexp.MustCompile(`\.(md|ps1|json|yml)$`)
	link        = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	scheme      = regexp.MustCompile(`^([a-z]+:|#)`)
)

// relink returns a page of the source as it is installed: a link to another installed file leads
// there, one to anything else to the repository.
func relink(source, text string) string {
	from := path.Dir(installed(source))
	return link.ReplaceAllStringFunc(text, func(whole string) string {
		to := link.FindStringSubmatch(whole)[1]
		if scheme.MatchString(to) {
			return whole
		}
		to, fragment, marked := strings.Cut(to, "#")
		if marked {
			fragment = "#" + fragment
		}
		target := path.Join(path.Dir(source), to)
		if at := installed(target); at != "" {
			return "](" + relative(from, at) + fragment + ")"
		}
		return "](" + repository + kind(target) + "/main/" + target + fragment + ")"
	})
}

// kind is what the repository's pages call a file or a folder.
func kind(source string) string {
	if path.Ext(source) == "" && source != "LICENSE" {
		return "tree"
	}
	return "blob"
}

// relative leads from a folder to a file; both are absolute and clean.
func relative(folder, file string) string {
	var up strings.Builder
	for !strings.HasPrefix(file, folder+"/") {
		folder = path.Dir(folder)
		up.WriteString("../")
	}
	return up.String() + strings.TrimPrefix(file, folder+"/")
}
