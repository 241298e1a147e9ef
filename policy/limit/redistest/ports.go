package redistest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A Node is a real server at a port of loopback: one of several that belong together.
type Node struct {
	Addr string
	Dir  string

	args []string
	cmd  *exec.Cmd
	ice  bool // frozen
}

// runs reports whether it answers.
func (n *Node) runs() bool { return n.cmd != nil && !n.ice }

// Host is where servers listen, and Env is added to the environment of those that are no sentinels.
// Both are set before the first one is started.
var (
	Host = "127.0.0.1"
	Env  []string
)

// base is where the next free port is looked for: below those that the kernel gives out, and so
// that a cluster's second port (10,000 above) is one, too.
var base atomic.Int32

// FreePort returns a port of loopback that nobody uses, nor the one 10,000 above it.
func FreePort(t testing.TB) string {
	t.Helper()
	for range 10_000 {
		port := 11_000 + (int(base.Add(1))+os.Getpid()*37)%10_000
		if free(port) && free(port+10_000) {
			return strconv.Itoa(port)
		}
	}
	t.Fatal("no port is free")
	return ""
}

func free(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(Host, strconv.Itoa(port)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// StartNode starts a server that writes to the disk.
func StartNode(t testing.TB, args ...string) *Node {
	t.Helper()
	port := FreePort(t)
	n := &Node{Addr: Host + ":" + port, Dir: t.TempDir()}
	n.args = append([]string{"--port", port, "--bind", Host, "--protected-mode", "no", "--dir", n.Dir, "--save", "", "--appendonly", "yes"}, args...)
	t.Cleanup(n.Kill)
	n.Start(t)
	return n
}

// Start starts it, again after [Node.Kill], and waits until it answers.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is needed for this test: apt-get install redis-server")
	}
	n.cmd = exec.Command(path, n.args...)
	if n.cmd.Env = os.Environ(); !slices.Contains(n.args, "--sentinel") {
		n.cmd.Env = append(n.cmd.Env, Env...)
	}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 6000 {
		if line := n.ask("PING"); strings.HasPrefix(line, "+PONG") || strings.HasPrefix(line, "-NOAUTH") || strings.HasPrefix(line, "-MASTERDOWN") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the server at %s does not answer within a minute", n.Addr)
}

// Kill ends it as a crash would.
func (n *Node) Kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd, n.ice = nil, false
	}
}

// Freeze stops it where it is, as a machine that hangs; Thaw lets it go on.
func (n *Node) Freeze() { n.ice = true; _ = n.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw is described with [Node.Freeze].
func (n *Node) Thaw() { n.ice = false; _ = n.cmd.Process.Signal(syscall.SIGCONT) }

// Wipe removes all that it has written; it does not run.
func (n *Node) Wipe() {
	os.RemoveAll(filepath.Join(n.Dir, "appendonlydir"))
	os.Remove(filepath.Join(n.Dir, "dump.rdb"))
}

// ask returns the first line of the answer to a command, "" without one.
func (n *Node) ask(command string) string {
	c, err := net.DialTimeout("tcp", n.Addr, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, command+"\r\n")
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line
}

// Do runs redis-cli with a command and returns what it says.
func (n *Node) Do(t testing.TB, args ...string) string {
	t.Helper()
	host, port, _ := net.SplitHostPort(n.Addr)
	out, err := exec.Command("redis-cli", append([]string{"-e", "-h", host, "-p", port}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %q: %v, %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// A Watch is a master and its replicas, watched by three sentinels, as "mymaster".
type Watch struct {
	Nodes     []*Node
	Sentinels []*Node
}

// StartWatch starts it. The sentinels take a master that is silent for a second for one that is
// gone. args are for the servers.
func StartWatch(t testing.TB, replicas int, args ...string) *Watch {
	t.Helper()
	p := &Watch{}
	args = append([]string{"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}, args...)
	p.Nodes = []*Node{StartNode(t, args...)}
	_, port, _ := net.SplitHostPort(p.Nodes[0].Addr)
	for range replicas {
		n := StartNode(t, append(args, "--replicaof", Host+" "+port)...)
		p.Nodes = append(p.Nodes, n)
		WaitFor(t, "a replica follows", func() bool { return strings.Contains(n.Do(t, "info", "replication"), "master_link_status:up") })
	}
	for range 3 {
		s := &Node{Dir: t.TempDir()}
		sentinelPort := FreePort(t)
		s.Addr = Host + ":" + sentinelPort
		file := filepath.Join(s.Dir, "sentinel.conf")
		text := fmt.Sprintf("port %[1]s\nbind %[4]s\nprotected-mode no\ndir %[2]s\nsentinel monitor mymaster %[4]s %[3]s 2\nsentinel down-after-milliseconds mymaster 1000\n"+
			"sentinel failover-timeout mymaster 4000\n", sentinelPort, s.Dir, port, Host)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.args = []string{file, "--sentinel"}
		t.Cleanup(s.Kill)
		s.Start(t)
		p.Sentinels = append(p.Sentinels, s)
	}
	WaitFor(t, "the sentinels know each other and the replicas", func() bool {
		for _, s := range p.Sentinels {
			all := strings.Split(s.Do(t, "sentinel", "master", "mymaster"), "\n")
			if value(all, "num-other-sentinels") != "2" || value(all, "num-slaves") != strconv.Itoa(replicas) {
				return false
			}
		}
		return true
	})
	return p
}

func value(lines []string, key string) string {
	for i, l := range lines[:max(0, len(lines)-1)] {
		if l == key {
			return lines[i+1]
		}
	}
	return ""
}

// URL is the store's.
func (p *Watch) URL() string {
	var hosts []string
	for _, s := range p.Sentinels {
		hosts = append(hosts, s.Addr)
	}
	return "redis+sentinel://" + strings.Join(hosts, ",") + "/mymaster/0"
}

// Master returns the server that the sentinels name, and the others.
func (p *Watch) Master(t testing.TB) (master *Node, others []*Node) {
	t.Helper()
	lines := strings.Fields(p.Sentinels[0].Do(t, "sentinel", "get-master-addr-by-name", "mymaster"))
	for _, n := range p.Nodes {
		if len(lines) == 2 && net.JoinHostPort(lines[0], lines[1]) == n.Addr {
			master = n
		} else {
			others = append(others, n)
		}
	}
	return master, others
}

// WaitMaster waits until the sentinels name another master than that one.
func (p *Watch) WaitMaster(t testing.TB, not *Node) {
	t.Helper()
	WaitFor(t, "another master", func() bool { m, _ := p.Master(t); return m != not })
}

// WaitReplicas waits until all other servers follow the master.
func (p *Watch) WaitReplicas(t testing.TB) {
	t.Helper()
	WaitFor(t, "the replicas to follow", func() bool {
		m, others := p.Master(t)
		_, port, _ := net.SplitHostPort(m.Addr)
		for _, r := range others {
			text := r.Do(t, "info", "replication")
			if !strings.Contains(text, "master_link_status:up") || !strings.Contains(text, "master_port:"+port) {
				return false
			}
		}
		return true
	})
}

// A Cluster is three masters with a replica each.
type Cluster struct{ Nodes []*Node }

// StartCluster starts it. A node that is silent for a second is taken for one that is gone.
func StartCluster(t testing.TB, args ...string) *Cluster {
	t.Helper()
	c := &Cluster{}
	args = append([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"}, args...)
	create := []string{"--cluster", "create"}
	for range 6 {
		n := StartNode(t, args...)
		c.Nodes = append(c.Nodes, n)
		create = append(create, n.Addr)
	}
	c.Nodes[0].Do(t, append(create, "--cluster-replicas", "1", "--cluster-yes")...)
	WaitFor(t, "the cluster", func() bool {
		for _, n := range c.Nodes {
			if !strings.Contains(n.Do(t, "cluster", "info"), "cluster_state:ok") {
				return false
			}
			if text := n.Do(t, "info", "replication"); strings.Contains(text, "role:slave") && !strings.Contains(text, "master_link_status:up") {
				return false
			}
		}
		return true
	})
	return c
}

// URL is the store's.
func (c *Cluster) URL() string {
	return "redis+cluster://" + c.Nodes[0].Addr + "," + c.Nodes[1].Addr + "," + c.Nodes[5].Addr
}

// MasterOf returns the master that has a key, as a running node sees it.
func (c *Cluster) MasterOf(t testing.TB, key string) *Node {
	t.Helper()
	for _, n := range c.Nodes {
		if !n.runs() {
			continue
		}
		if text := n.Do(t, "info", "replication"); !strings.Contains(text, "role:master") {
			continue
		}
		if text := n.ask("EXISTS " + key); strings.HasPrefix(text, ":") {
			return n
		}
	}
	return nil
}

// WaitFor polls, for a minute at most.
func WaitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for range 1200 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("waiting for %s: a minute has passed", what)
}

// ACL is what a user of the server's access list has to be allowed, besides its keys: the documents
// say the same.
const ACL = "-@all +evalsha +eval +get +set +pexpire +exists +hget +hmget +hgetall +hset +hdel +hkeys +time +info +ping +hello +auth +select +client|setname +cluster|slots +cluster|shards +command +asking"

// A Switch is an address that leads to one server or another, as a name that is changed does.
type Switch struct {
	Addr string

	mu    sync.Mutex // guards what follows
	to    string
	conns []net.Conn
}

// NewSwitch leads to a server; "" to none.
func NewSwitch(t testing.TB, to string) *Switch {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Switch{Addr: l.Addr().String(), to: to}
	t.Cleanup(func() { l.Close(); s.To("") })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.carry(c)
		}
	}()
	return s
}

// URL is the store's.
func (s *Switch) URL() string { return "redis://" + s.Addr + "/0" }

// To leads to another server from now on; connections end.
func (s *Switch) To(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = addr
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *Switch) carry(c net.Conn) {
	s.mu.Lock()
	to := s.to
	s.mu.Unlock()
	out, err := net.Dial("tcp", to)
	s.mu.Lock()
	if err != nil || to == "" || s.to != to {
		s.mu.Unlock()
		c.Close()
		if err == nil {
			out.Close()
		}
		return
	}
	s.conns = append(s.conns, c, out)
	s.mu.Unlock()
	go func() { _, _ = io.Copy(out, c); out.Close() }()
	_, _ = io.Copy(c, out)
	c.Close()
}

// WaitReplicas waits until every replica of the cluster follows its master, and all slots are
// served.
func (c *Cluster) WaitReplicas(t testing.TB) {
	t.Helper()
	WaitFor(t, "the replicas of the cluster", func() bool {
		for _, n := range c.Nodes {
			if !n.runs() {
				continue
			}
			text := n.Do(t, "info", "replication")
			if strings.Contains(text, "role:slave") && !strings.Contains(text, "master_link_status:up") {
				return false
			}
			if !strings.Contains(n.Do(t, "cluster", "info"), "cluster_state:ok") {
				return false
			}
		}
		return true
	})
}
