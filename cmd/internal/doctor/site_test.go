package doctor

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/dns/dnstest"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/lab"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/sasl"
)

// A realSite is a site with a real Postfix, made by "sendas postfix enable", both services as
// processes of users of their own, and a simulated Exchange Online. It is for tests that break it and
// mend it again, one after the other.
type realSite struct {
	*lab.Site
	bin   string // the folder of sendas
	world *world
}

// built has the program and the plugin, in a folder that services' users may enter.
var built = sync.OnceValues(func() (dir string, err error) {
	if dir, err = lab.MakeDir(); err != nil {
		return "", err
	}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "sendas"), "../../sendas").CombinedOutput(); err != nil {
		return dir, fmt.Errorf("building sendas: %w\n%s", err, out)
	}
	_, err = sasl.Build(context.Background(), dir)
	return dir, err
})

// onceBuilt is the folder of built, where there is one.
var onceBuilt string

func TestMain(m *testing.M) {
	code := m.Run()
	if onceBuilt != "" {
		os.RemoveAll(onceBuilt)
	}
	os.Exit(code)
}

// openSite starts the site; yaml changes its configuration.
func openSite(t *testing.T, yaml func(string) string, sim func(*exosim.Config)) *realSite {
	t.Helper()
	dir, err := built()
	if onceBuilt = dir; err != nil {
		t.Fatal(err)
	}
	r := &realSite{bin: dir}
	c := lab.SiteConfig{
		Sendas: filepath.Join(r.bin, "sendas"), PluginDir: r.bin, Minute: 6 * time.Second, YAML: yaml, Exosim: sim,
		Postfix: func(_ *lab.Site, main map[string]string) []string {
			maps.DeleteFunc(main, func(name, _ string) bool { _, ours := lab.MainCF("587", "")[name]; return ours })
			main["local_header_rewrite_clients"] = "permit_inet_interfaces" // Postfix's default, and not the lab's
			main["message_size_limit"], main["mailbox_size_limit"], main["inet_interfaces"] = "36700160", "0", "all"
			return nil
		},
	}
	if r.Site, err = lab.StartSite(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	r.sendas(t, "postfix", "enable", "--postfix-config", r.Postfix.ConfigDir(), "--state", filepath.Join(r.Dir, "postfix-state.json"))
	r.world = r.newWorld(t)
	r.age(t)
	return r
}

// sendas types a command.
func (r *realSite) sendas(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(r.bin, "sendas"), append(args, "--config", r.Config)...).CombinedOutput()
	if err != nil {
		t.Fatalf("sendas %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// newWorld is this host, but for Microsoft's name, which is the simulator's, and the users of the
// services, which the lab borrows.
func (r *realSite) newWorld(t *testing.T) *world {
	t.Helper()
	w := RealWorld()
	w.resolver = dnstest.Fake{Records: map[string][]string{"IP smtp.office365.com": {"127.0.0.1"}}, Asked: map[string]int{}}
	w.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "smtp.office365.com:") {
			addr = r.Exosim.SubmissionAddr()
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	own := filepath.Join(r.Dir, "etc")
	if err := os.CopyFS(own, os.DirFS(filepath.Join(r.Postfix.QueueDir(), "etc"))); err != nil {
		t.Fatal(err)
	}
	w.etc = own
	w.saslDirs = []string{r.bin}
	w.account = func(name string) (uint32, []uint32, error) {
		switch name {
		case service.MilterUser:
			return 65534, []uint32{65534}, nil
		case service.TokenUser:
			return 1, []uint32{1, 65534}, nil // the package puts it into the group of the milter
		}
		return service.AccountIDs(name)
	}
	return w
}

// age makes main.cf older: a program of Postfix's waits until it is 2 seconds old, lest it reads half
// of it.
func (r *realSite) age(t *testing.T) {
	t.Helper()
	past := time.Now().Add(-time.Minute)
	for _, name := range []string{"main.cf", "master.cf"} {
		if err := os.Chtimes(filepath.Join(r.Postfix.ConfigDir(), name), past, past); err != nil {
			t.Fatal(err)
		}
	}
}

// visit runs the doctor there.
func (r *realSite) visit(t *testing.T, q Options) (d *Walk, out string, code int) {
	t.Helper()
	var stdout, said bytes.Buffer
	q.File, q.Folder, q.Stdout = r.Config, r.Postfix.ConfigDir(), &stdout
	d = New(&q, r.world)
	if err := d.Run(t.Context()); err != nil {
		code = exit.Tell(&said, err)
	}
	findingtest.WantWhole(t, &d.Report)
	return d, stdout.String() + said.String(), code
}
