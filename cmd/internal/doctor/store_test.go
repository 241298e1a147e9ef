package doctor

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/policy/limit/redistest"
)

// startRedis starts a real server on a unix socket and returns the socket's path.
func startRedis(t *testing.T, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sendas-redis") // short: the path of a socket has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("redis-server", append([]string{"--port", "0", "--unixsocket", socket, "--dir", dir, "--save", ""}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatalf("redis-server is needed for this test (apt-get install redis-server): %v", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); os.RemoveAll(dir) })
	for range 6000 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("redis-server does not answer within a minute")
	return ""
}

func TestDoctorStore(t *testing.T) {
	good := startRedis(t, "--appendonly", "yes")
	poor := startRedis(t, "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
	locked := startRedis(t, "--requirepass", "s3cret")
	pair := redistest.StartWatch(t, 1)
	lonely := redistest.StartNode(t, "--min-replicas-to-write", "1")
	master, _ := pair.Master(t)
	_, lonelyPort, _ := net.SplitHostPort(lonely.Addr)
	pair.Sentinels[0].Do(t, "sentinel", "monitor", "lonely", "127.0.0.1", lonelyPort, "1")
	dir := t.TempDir()
	right, wrong := configtest.WriteFile(t, dir+"/right", "s3cret\n", 0o600), configtest.WriteFile(t, dir+"/wrong", "wr0ng\n", 0o600)
	ledger := configtest.WriteFile(t, dir+"/token.db", "x", 0o600)
	for _, tc := range []struct {
		name, token string // of the section
		id          string
		status      finding.Status
		words       string
	}{
		{"memory", "store: 'memory:'", "store.kind", finding.Warn, "in memory|store: bolt:FILE"},
		{"a file", "store: bolt:" + ledger, "store.file", finding.OK, "1 kB"},
		{"no file yet", "store: bolt:" + dir + "/other.db", "store.file", finding.Warn, "systemctl start sendas-token"},
		{"a good server", "store: unix://" + good + ", hosts: 2", "store.server", finding.OK, "shared by 2 hosts|version "},
		{"keeps all", "store: unix://" + good, "store.eviction", finding.OK, "noeviction"},
		{"writes to disk", "store: unix://" + good, "store.durable", finding.OK, "yes"},
		{"evicts", "store: unix://" + poor, "store.eviction", finding.Warn, "allkeys-lru|maxmemory-policy noeviction"},
		{"volatile", "store: unix://" + poor, "store.durable", finding.Warn, "appendonly yes"},
		{"no password", "store: unix://" + locked, "store.server", finding.Fail, "refuses the password|requirepass"},
		{"wrong password", "store: unix://" + locked + ", store_password_file: " + wrong, "store.server", finding.Fail, "refuses the password"},
		{"right password", "store: unix://" + locked + ", store_password_file: " + right, "store.server", finding.OK, "version "},
		{"by sentinels", "store: '" + pair.URL() + "'", "store.server", finding.OK, "redis+sentinel://|version "},
		{"a replica that nobody waits for", "store: '" + pair.URL() + "'", "store.replicas", finding.Warn, "min-replicas-to-write 1"},
		{"the same, named by itself", "store: redis://" + master.Addr, "store.replicas", finding.Warn, "min-replicas-to-write 1"},
		{"nobody follows", "store: redis+sentinel://" + pair.Sentinels[0].Addr + "/lonely", "store.follows", finding.Warn, "nobody to take the place"},
		{"one that waits", "store: redis+sentinel://" + pair.Sentinels[0].Addr + "/lonely", "store.replicas", finding.OK, "is set, and 0 follow"},
		{"no server", "store: redis://127.0.0.1:1/0", "store.server", finding.Fail, "connection refused|keeps to its share"},
	} {
		config := configtest.WriteFile(t, filepath.Join(t.TempDir(), "sendas.yaml"), configtest.SmallConfig+"token: {"+tc.token+"}\n", 0o600)
		configtest.WriteFile(t, filepath.Join(filepath.Dir(config), "relay-app.secret"), "x\n", 0o600)
		d, out, _ := diagnose(t, config, Options{}, emptyWorld())
		if strings.Contains(out, "s3cret") || strings.Contains(out, "wr0ng") {
			t.Errorf("%s: the password is shown:\n%s", tc.name, out)
		}
		d.wantCheck(t, tc.id, tc.status, strings.Split(tc.words, "|")...)
	}
}
