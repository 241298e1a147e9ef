package main

import (
	"bufio"
	"bytes"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const modulePath = "github.com/sendas/sendas/"

// A dwelling is one package of the project.
type dwelling struct {
	path    string // below the root
	pkg     *build.Package
	imports []string // of ours, without tests
	lines   int      // without tests
}

// helps reports whether the package is for tests alone.
func (d *dwelling) helps() bool { return strings.HasSuffix(d.path, "test") }

// dwellings reads all packages below the root.
func dwellings(t *testing.T) []dwelling {
	t.Helper()
	const root = "../.."
	var list []dwelling
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if name := e.Name(); name == "testdata" || name == "build" || path != root && strings.HasPrefix(name, ".") {
			return filepath.SkipDir
		}
		p, err := build.ImportDir(path, 0)
		if _, none := err.(*build.NoGoError); none {
			return nil
		}
		if err != nil {
			return err
		}
		d := dwelling{pkg: p}
		if d.path, err = filepath.Rel(root, path); err != nil {
			return err
		}
		for _, im := range p.Imports {
			if ours, ok := strings.CutPrefix(im, modulePath); ok {
				d.imports = append(d.imports, ours)
			}
		}
		for _, f := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(path, f))
			if err != nil {
				return err
			}
			d.lines += bytes.Count(text, []byte("\n"))
		}
		list = append(list, d)
		return nil
	})
	if err != nil || len(list) < 30 {
		t.Fatalf("%d packages, %v", len(list), err)
	}
	return list
}

// A tourRow is one room as the table of the tour has it.
type tourRow struct {
	room    string
	imports []string
}

// tourTable reads the table of docs/tour.md.
func tourTable(t *testing.T) []tourRow {
	t.Helper()
	var rows []tourRow
	s := bufio.NewScanner(strings.NewReader(readText(t, "../../docs/tour.md")))
	for s.Scan() {
		cells := strings.Split(s.Text(), "|")
		name, _, ok := strings.Cut(s.Text(), "](")
		if !ok || len(cells) != 5 || !strings.HasPrefix(name, "| [") {
			continue
		}
		r := tourRow{room: strings.TrimPrefix(name, "| [")}
		for _, im := range strings.Split(cells[3], ",") {
			if im = strings.TrimSpace(im); im != "–" {
				r.imports = append(r.imports, im)
			}
		}
		rows = append(rows, r)
	}
	return rows
}

// roomOf returns the place in the table of the room that a package belongs to, -1 for none.
func roomOf(rows []tourRow, path string) int {
	best := -1
	for i, r := range rows {
		if (path == r.room || strings.HasPrefix(path, r.room+"/")) && (best < 0 || len(r.room) > len(rows[best].room)) {
			best = i
		}
	}
	return best
}

// TestHouseImports: the tour's table is the architecture. Each room imports just what its row says,
// and nothing above it.
func TestHouseImports(t *testing.T) {
	rows := tourTable(t)
	have := make([]map[string]bool, len(rows))
	for _, d := range dwellings(t) {
		at := roomOf(rows, d.path)
		if at < 0 && !d.helps() {
			t.Errorf("%s stands in no row of docs/tour.md", d.path)
		}
		for _, im := range d.imports {
			to := roomOf(rows, im)
			helper := strings.HasSuffix(im, "test")
			switch {
			case d.helps():
			case helper:
				t.Errorf("%s imports %s, which is for tests", d.path, im)
			case at < 0 || to < 0 || to == at:
			case to < at:
				t.Errorf("%s imports %s, which stands above it", d.path, im)
			default:
				if have[at] == nil {
					have[at] = make(map[string]bool)
				}
				have[at][rows[to].room] = true
			}
		}
	}
	for i, r := range rows {
		for _, im := range r.imports {
			if !have[i][im] {
				t.Errorf("docs/tour.md: %s does not import %s", r.room, im)
			}
			delete(have[i], im)
		}
		for im := range have[i] {
			t.Errorf("docs/tour.md: the row of %s lacks %s", r.room, im)
		}
	}
}

// TestHouseSizes: no package grows beyond what one can hold in mind, and each says what it is.
func TestHouseSizes(t *testing.T) {
	const most = 4100
	for _, d := range dwellings(t) {
		if d.lines > most {
			t.Errorf("%s has %d lines without tests: more than %d are several ideas", d.path, d.lines, most)
		}
		if len(d.pkg.GoFiles) > 0 && d.pkg.Doc == "" {
			t.Errorf("%s has no package comment", d.path)
		}
	}
}

// TestHouseNames: no name repeats that of its package, and no file that of its folder.
func TestHouseNames(t *testing.T) {
	for _, d := range dwellings(t) {
		if d.pkg.Name == "main" {
			continue
		}
		for _, f := range d.pkg.GoFiles {
			if strings.HasPrefix(f, filepath.Base(d.path)+"_") {
				t.Errorf("%s/%s repeats its folder", d.path, f)
			}
			for _, name := range declared(t, filepath.Join("../..", d.path, f)) {
				if repeats(name, d.pkg.Name) {
					t.Errorf("%s.%s repeats its package", d.path, name)
				}
			}
		}
	}
}

// repeats reports whether a name is, or begins with, that of its package.
func repeats(name, pkg string) bool {
	if len(name) < len(pkg) || !strings.EqualFold(name[:len(pkg)], pkg) {
		return false
	}
	rest := name[len(pkg):]
	return rest == "" || rest[0] >= 'A' && rest[0] <= 'Z'
}

// declared returns the names that a file declares for its package.
func declared(t *testing.T, file string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				names = append(names, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					names = append(names, s.Name.Name)
				case *ast.ValueSpec:
					for _, id := range s.Names {
						names = append(names, id.Name)
					}
				}
			}
		}
	}
	return slices.DeleteFunc(names, func(n string) bool { return n == "_" })
}
