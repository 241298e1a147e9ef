package milter_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A filter is a milter in a process of its own.
type filter struct {
	name   string // in the benchmark's figures
	socket string
	pid    int
	mtas   []*mta
}

// startSendas starts "sendas milter" as a site with so many clients does, logging to a file, and with
// a record on the disk.
func startSendas(b *testing.B, socket string, clients int) *filter {
	b.Helper()
	return startSendasWith(b, "sendas", socket, clients, "record: {milter_file: record.db}\n")
}

// startSendasWith starts it with more lines of configuration, and under another name in the figures.
func startSendasWith(b *testing.B, name, socket string, clients int, more string) *filter {
	b.Helper()
	dir := b.TempDir()
	program := build(b, filepath.Join(dir, "sendas"), "../cmd/sendas")
	config := filepath.Join(dir, "sendas.yaml")
	if err := os.WriteFile(config, append(benchConfig(socket, clients), more...), 0o644); err != nil {
		b.Fatal(err)
	}
	return start(b, name, socket, program, "milter", "--config", config)
}

// startC compiles and starts testdata/bench/filter.c.
func startC(b *testing.B, socket string) *filter {
	b.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		b.Fatal(`there is no C compiler for the filter to compare with; type "apt-get install gcc libc6-dev libmilter-dev"`)
	}
	program := filepath.Join(b.TempDir(), "filter")
	out, err := exec.Command(cc, "-O2", "-o", program, "testdata/bench/filter.c", "-lmilter", "-lpthread").CombinedOutput()
	if err != nil {
		b.Fatalf("the filter to compare with does not compile; if libmilter is missing, type \"apt-get install libmilter-dev\": %v\n%s", err, out)
	}
	return start(b, "libmilter", socket, program, "unix:"+socket)
}

// startGoMilter builds and starts testdata/bench/gomilter.
func startGoMilter(b *testing.B, socket string) *filter {
	b.Helper()
	program := build(b, filepath.Join(b.TempDir(), "gomilter"), "./testdata/bench/gomilter")
	return start(b, "go-milter", socket, program, socket)
}

func build(b *testing.B, program, folder string) string {
	b.Helper()
	if out, err := exec.Command("go", "build", "-o", program, folder).CombinedOutput(); err != nil {
		b.Fatalf("building %s: %v\n%s", folder, err, out)
	}
	return program
}

// start starts a filter and waits until it serves. It is killed when the benchmark ends.
func start(b *testing.B, name, socket, program string, args ...string) *filter {
	b.Helper()
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	b.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	f := &filter{name: name, socket: socket, pid: cmd.Process.Pid}
	if err := f.waitReady(ended); err != nil {
		said, _ := os.ReadFile(log.Name())
		b.Fatalf("%s does not serve: %v\n%s", name, err, said)
	}
	return f
}

// waitReady waits until the filter accepts a connection.
func (f *filter) waitReady(ended <-chan struct{}) error {
	for end := time.After(patience); ; {
		conn, err := net.Dial("unix", f.socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ended:
			return errors.New("it has ended")
		case <-end:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// cpu is the CPU time that the process has used, user's and system's, of all its threads
// (clock_getcpuclockid(3)); 0 where it has ended.
func (f *filter) cpu() time.Duration {
	const sched = 2 // CPUCLOCK_SCHED of Linux
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^f.pid<<3|sched), &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// connect begins the sessions and makes sure that the filter does what all must do.
func (f *filter) connect(b *testing.B) {
	b.Helper()
	for range sessions {
		m, err := connect(f.socket)
		if err != nil {
			b.Fatalf("%s: %v", f.name, err)
		}
		b.Cleanup(func() { m.conn.Close() })
		got, err := m.changes()
		if err != nil || got != benchChanges {
			b.Fatalf("%s: %v, changes\n%s\nwant\n%s", f.name, err, got, benchChanges)
		}
		f.mtas = append(f.mtas, m)
	}
}

// send passes n messages, shared out among the sessions.
func (f *filter) send(n int) error {
	errs := make([]error, len(f.mtas))
	var wg sync.WaitGroup
	for i, m := range f.mtas {
		wg.Go(func() { errs[i] = m.send(n / len(f.mtas)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// benchConfig is a site of so many clients besides this host, with a mailbox for each. Mail of
// 10.200.0.0/16 and of this host leaves as scan@contoso.com.
func benchConfig(socket string, clients int) []byte {
	var b bytes.Buffer
	b.WriteString("tenant: {id: contoso.com, domains: [contoso.com]}\ncredentials:\n  relay-app:\n" +
		"    client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab\n    client_secret_file: relay-app.secret\nmailboxes:\n" +
		"  - {address: scan@contoso.com, credential: relay-app}\n")
	for i := range clients - 1 {
		fmt.Fprintf(&b, "  - {address: box%d@contoso.com, credential: relay-app, send_as: [alias%[1]d@contoso.com]}\n", i)
	}
	b.WriteString("clients:\n")
	for i := range clients - 1 {
		fmt.Fprintf(&b, "  - {name: client%d, networks: [100.%d.%d.0/24], from: box%[1]d@contoso.com}\n", i, i/256, i%256)
	}
	b.WriteString("  - {name: printers, networks: [10.200.0.0/16], from: scan@contoso.com}\n" +
		"  - {name: this-host, networks: [127.0.0.0/8], from: scan@contoso.com}\n")
	fmt.Fprintf(&b, "milter: {listen: \"unix:%s\", policy_listen: off, http: off, store: \"memory:\"}\n", socket)
	return b.Bytes()
}
