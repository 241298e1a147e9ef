package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// PostfixConfig says what an instance looks like.
type PostfixConfig struct {
	// Dir is the folder that everything lives below: an absolute path, an
	// empty or missing folder. User postfix must be able to enter all its
	// parents (see MakeDir), and sockets in it have names of at most 107
	// bytes, so keep it short.
	Dir string

	// Hostname is $myhostname; "" means relay.lab.example. A server whose
	// banner has this name too is refused by Postfix as a mail loop.
	Hostname string

	// Main is added to main.cf and replaces the settings made here.
	Main map[string]string

	// Master is added to master.cf, an entry each. One with the service name
	// and type of an entry made here replaces that.
	Master []string

	// Hosts is what names mean inside the instance: name → address. There is
	// no DNS.
	Hosts map[string]string

	// SASLPluginDir is the one folder in which smtp(8) and smtpd(8) look for
	// Cyrus SASL plugins; "" is the system's.
	SASLPluginDir string

	// SocketUID and SocketGID own the folder SocketDir.
	SocketUID, SocketGID int
}

// Postfix is a running instance. Its methods may be called from any
// goroutine. Those that take a context return an error when it ends first.
type Postfix struct {
	cfg  PostfixConfig
	addr string

	mu   sync.Mutex // one start or stop at a time; guards pgid
	pgid int        // master's process group, which all daemons share; 0 when stopped
}

const (
	defaultHostname = "relay.lab.example"
	startTimeout    = 2 * time.Minute
	stopTimeout     = time.Minute           // then it is killed; daemons end at once, even in mid-session
	pollInterval    = 50 * time.Millisecond // between looks at queue, log and processes
	logTail         = 2000                  // bytes of log in an error
	mailOwner       = "postfix"             // $mail_owner and
	setgidGroup     = "postdrop"            // $setgid_group, as all packages have them
	commandPath     = "/usr/sbin:/usr/bin:/sbin:/bin"
)

// MakeDir makes a new empty folder for PostfixConfig.Dir below the system's
// folder for temporary files, which all users may enter (those of
// testing.T.TempDir only root may). The caller removes it after Stop.
func MakeDir() (string, error) {
	dir, err := os.MkdirTemp("", "sendas-lab-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// StartPostfix writes the configuration below c.Dir and starts Postfix. On
// error nothing keeps running; what was written stays, log included. ctx bounds
// the start only: end the instance with Stop.
func StartPostfix(ctx context.Context, c PostfixConfig) (*Postfix, error) {
	c.Hostname = cmp.Or(c.Hostname, defaultHostname)
	p := &Postfix{cfg: c}
	if err := p.prepare(); err != nil {
		return nil, fmt.Errorf("preparing Postfix in %s: %w", c.Dir, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// SMTPAddr is where smtpd(8) listens: address and port.
func (p *Postfix) SMTPAddr() string { return p.addr }

// ConfigDir holds main.cf and master.cf; give it to the -c of Postfix's
// commands. Changes take effect by Reload or Restart.
func (p *Postfix) ConfigDir() string { return filepath.Join(p.cfg.Dir, "etc") }

// QueueDir is the queue directory, the daemons' working directory and chroot.
func (p *Postfix) QueueDir() string { return filepath.Join(p.cfg.Dir, "queue") }

// SocketDir is the folder sendas in the queue directory, for the sockets that
// main.cf names by relative paths such as unix:sendas/milter.
func (p *Postfix) SocketDir() string { return filepath.Join(p.QueueDir(), "sendas") }

func (p *Postfix) dataDir() string { return filepath.Join(p.cfg.Dir, "data") }
func (p *Postfix) logFile() string { return filepath.Join(p.cfg.Dir, "maillog") }

// Stop ends the instance and waits until no process of it is left. Stopping
// again does nothing. An error means that force was needed, or that it did not
// help.
func (p *Postfix) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stop()
}

// Restart stops and starts the instance: same port, same queue, new processes.
func (p *Postfix) Restart(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.stop(); err != nil {
		return err
	}
	return p.start(ctx)
}

// Reload makes Postfix read main.cf and master.cf again. Daemons that are at
// work finish with the old settings first.
func (p *Postfix) Reload(ctx context.Context) error {
	_, err := p.command(ctx, nil, "postfix", "-c", p.ConfigDir(), "reload")
	return err
}

// Flush makes Postfix try all deferred mail now.
func (p *Postfix) Flush(ctx context.Context) error {
	_, err := p.command(ctx, nil, "postqueue", "-c", p.ConfigDir(), "-f")
	return err
}

// Release lets a message go on that is on hold: a queue id, or ALL.
func (p *Postfix) Release(ctx context.Context, id string) error {
	_, err := p.command(ctx, nil, "postsuper", "-c", p.ConfigDir(), "-H", id)
	return err
}

// SendmailInject submits a message as a local program would, by sendmail(1).
// The envelope sender "" is the null sender. Only non_smtpd_milters see it.
func (p *Postfix) SendmailInject(ctx context.Context, from string, rcpts []string, msg []byte) error {
	args := append([]string{"-C", p.ConfigDir(), "-i", "-f", from, "--"}, rcpts...)
	_, err := p.command(ctx, bytes.NewReader(msg), "sendmail", args...)
	return err
}

// QueueEntry is one message in the queue.
type QueueEntry struct {
	Queue      string           `json:"queue_name"` // active, deferred, hold, incoming or maildrop
	ID         string           `json:"queue_id"`
	Arrival    int64            `json:"arrival_time"` // in seconds since 1970
	Size       int64            `json:"message_size"` // in bytes
	Sender     string           `json:"sender"`       // "" is the null sender
	Recipients []QueueRecipient `json:"recipients"`   // those that have not had it yet
}

// QueueRecipient is one recipient of a QueueEntry.
type QueueRecipient struct {
	Address string `json:"address"`
	Reason  string `json:"delay_reason"` // why the last attempt failed; "" if there was none
}

// Queue lists what is in the queue, each message once. One that moves from deferred to active
// meanwhile may be missing: showq(8) lists one queue after the other.
func (p *Postfix) Queue(ctx context.Context) ([]QueueEntry, error) {
	out, err := p.command(ctx, nil, "postqueue", "-c", p.ConfigDir(), "-j")
	if err != nil {
		return nil, err
	}
	var entries []QueueEntry
	at := make(map[string]int) // by id
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var e QueueEntry
		switch err := d.Decode(&e); {
		case err == io.EOF:
			return entries, nil
		case err != nil:
			return nil, fmt.Errorf("reading the output of postqueue: %w", err)
		}
		if e.Sender == "MAILER-DAEMON" { // how showq(8) spells <>
			e.Sender = ""
		}
		if i, moved := at[e.ID]; moved {
			entries[i] = e
			continue
		}
		at[e.ID] = len(entries)
		entries = append(entries, e)
	}
}

// Log is all that the instance has logged since it was first started. What a
// program has just done may be missing for a moment: postlogd(8) writes it.
func (p *Postfix) Log() (string, error) {
	b, err := os.ReadFile(p.logFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// WaitQueue returns the queue as soon as done says that it is as wanted. When
// ctx ends first, the error tells what was in it last. An empty queue is looked
// at twice, since a message may have moved while it was listed.
func (p *Postfix) WaitQueue(ctx context.Context, done func([]QueueEntry) bool) ([]QueueEntry, error) {
	var last []QueueEntry
	look := func() (bool, error) {
		q, err := p.Queue(ctx)
		if err == nil {
			last = q
		}
		return err == nil && done(q), err
	}
	err := poll(ctx, func() (bool, error) {
		ok, err := look()
		if ok && len(last) == 0 {
			return look()
		}
		return ok, err
	})
	if err != nil {
		return last, fmt.Errorf("waiting for the queue: %w; it holds %+v", err, last)
	}
	return last, nil
}

// WaitLog returns the first line of the log that re matches, as soon as there
// is one. When ctx ends first, the error has the end of the log.
func (p *Postfix) WaitLog(ctx context.Context, re *regexp.Regexp) (string, error) {
	var found string
	err := poll(ctx, func() (bool, error) {
		log, err := p.Log()
		for line := range strings.Lines(log) {
			if re.MatchString(line) {
				found = strings.TrimSuffix(line, "\n")
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		return "", fmt.Errorf("waiting for %q in the log: %w; it ends with\n%s", re, err, p.tail())
	}
	return found, nil
}

// poll asks done again and again until it says yes, fails, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tail is the end of the log, for errors.
func (p *Postfix) tail() string {
	log, err := p.Log()
	if err != nil {
		return err.Error()
	}
	return log[max(0, len(log)-logTail):]
}

// start starts the daemons. The caller holds p.mu.
func (p *Postfix) start(ctx context.Context) error {
	if p.pgid != 0 {
		return errors.New("starting Postfix: it runs already")
	}
	// Interrupted half-way, the command could leave a master(8) that starts
	// after we have looked for it. So it runs to its end, which takes a second.
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	// The file spares us the check of an installation that we have just made,
	// which starts some hundred processes. postfix-script(1) removes it.
	err := os.WriteFile(filepath.Join(p.QueueDir(), "quick-start"), nil, 0o644)
	if err == nil {
		_, err = p.command(limit, nil, "postfix", "-c", p.ConfigDir(), "start")
	}
	pid, pidErr := p.masterPID()
	p.pgid = pid
	if err = cmp.Or(err, pidErr, ctx.Err()); err != nil {
		return errors.Join(fmt.Errorf("starting Postfix: %w; the log ends with\n%s", err, p.tail()), p.stop())
	}
	return nil
}

// masterPID is the process id of the running master(8), which is its process
// group's too.
func (p *Postfix) masterPID() (int, error) {
	b, err := os.ReadFile(filepath.Join(p.QueueDir(), "pid", "master.pid"))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("reading master.pid: %w", err)
	}
	// The file outlives its process.
	if len(processGroup(pid)) == 0 {
		return 0, errors.New("master(8) is not running")
	}
	return pid, nil
}

// stop ends the daemons. The caller holds p.mu.
func (p *Postfix) stop() error {
	if p.pgid == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	// What "postfix stop" does, without its pauses of a whole second: master(8)
	// passes the signal on to its process group.
	err := syscall.Kill(p.pgid, syscall.SIGTERM)
	if gone := p.waitGone(ctx); gone != nil {
		err = errors.Join(err, gone, syscall.Kill(-p.pgid, syscall.SIGKILL))
	}
	p.pgid = 0
	return err
}

// waitGone waits until no process of the instance is left.
func (p *Postfix) waitGone(ctx context.Context) error {
	var left []int
	err := poll(ctx, func() (bool, error) {
		left = processGroup(p.pgid)
		return len(left) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the end of processes %v: %w", left, err)
	}
	return nil
}

// processGroup lists the processes of a group. Dead ones that nobody has
// waited for do not count: in a container they may stay for ever.
func processGroup(pgid int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	var pids []int
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it ended meanwhile
		}
		// proc(5): pid (comm) state ppid pgrp …, and comm may hold anything.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > 2 && f[0] != "Z" && f[0] != "X" && f[2] == strconv.Itoa(pgid) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// command runs one of Postfix's programs, with nothing of our environment.
func (p *Postfix) command(ctx context.Context, stdin io.Reader, name string, args ...string) ([]byte, error) {
	path, err := lookCommand(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = stdin
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + commandPath, "LANG=C"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Should a daemon keep the pipe open, that must not keep us.
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(stdout.String() + stderr.String())
		// Before main.cf is read and postlogd(8) runs, complaints go to syslog.
		return nil, fmt.Errorf("%s: %w: %s", name, cmp.Or(ctx.Err(), err), cmp.Or(said, "it said nothing here; see the system's log"))
	}
	return stdout.Bytes(), nil
}

// lookCommand finds one of Postfix's programs, which are seldom in the PATH of
// anyone but root.
func lookCommand(name string) (string, error) {
	for dir := range strings.SplitSeq(commandPath, ":") {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s of Postfix is not installed: run make deps", name)
}

// prepare checks the host and writes all files.
func (p *Postfix) prepare() error {
	steps := []func() error{p.checkHost, p.checkDir, p.choosePort, p.makeDirs, p.writeConfig, p.writeChroot}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Postfix) checkHost() error {
	if os.Geteuid() != 0 {
		return errors.New("Postfix can be started by root only")
	}
	for _, name := range []string{"postfix", "postqueue", "postsuper", "sendmail"} {
		if _, err := lookCommand(name); err != nil {
			return err
		}
	}
	return nil
}

func (p *Postfix) checkDir() error {
	if !filepath.IsAbs(p.cfg.Dir) {
		// With a relative folder, "postfix stop" does not find its daemons.
		return errors.New("not an absolute path")
	}
	entries, err := os.ReadDir(p.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return errors.New("the folder is not empty")
	}
	for dir := filepath.Dir(p.cfg.Dir); ; dir = filepath.Dir(dir) {
		if fi, err := os.Stat(dir); err == nil && fi.Mode()&0o001 == 0 {
			return fmt.Errorf("user %s cannot enter %s: chmod o+x %[2]s, or use MakeDir", mailOwner, dir)
		}
		if dir == "/" {
			return nil
		}
	}
}

// choosePort finds a free port that stays free over a Restart: one below the
// range from which Linux takes ports for outgoing connections.
func (p *Postfix) choosePort() error {
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(32768-10000))
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			continue
		}
		p.addr = addr
		return l.Close()
	}
	return errors.New("no free port")
}

// makeDirs makes the folders, those of the queue as postfix-files(5) has them.
func (p *Postfix) makeDirs() error {
	owner, err := user.Lookup(mailOwner)
	if err != nil {
		return err
	}
	dropGroup, err := user.LookupGroup(setgidGroup)
	if err != nil {
		return err
	}
	uid, err1 := strconv.Atoi(owner.Uid)
	gid, err2 := strconv.Atoi(dropGroup.Gid)
	err = errors.Join(err1, err2,
		makeDir(p.cfg.Dir, 0o755, 0, 0),
		makeDir(p.ConfigDir(), 0o755, 0, 0),
		makeDir(p.dataDir(), 0o700, uid, 0),
		makeDir(p.QueueDir(), 0o755, 0, 0),
		makeDir(filepath.Join(p.QueueDir(), "pid"), 0o755, 0, 0),
		makeDir(filepath.Join(p.QueueDir(), "maildrop"), 0o730, uid, gid),
		makeDir(filepath.Join(p.QueueDir(), "public"), 0o710, uid, gid),
		makeDir(p.SocketDir(), 0o755, p.cfg.SocketUID, p.cfg.SocketGID))
	for _, name := range []string{"active", "bounce", "corrupt", "defer", "deferred", "flush",
		"hold", "incoming", "private", "saved", "trace"} {
		err = errors.Join(err, makeDir(filepath.Join(p.QueueDir(), name), 0o700, uid, 0))
	}
	return err
}

// makeDir makes a folder with just that mode, whatever the umask.
func makeDir(path string, mode fs.FileMode, uid, gid int) error {
	return errors.Join(os.MkdirAll(path, mode), os.Chmod(path, mode), os.Chown(path, uid, gid))
}

func (p *Postfix) writeConfig() error {
	main := filepath.Join(p.ConfigDir(), "main.cf")
	// Every program of Postfix waits until main.cf is 2 seconds old, lest it
	// reads half of it (dict_load_file_xt), so we write it in the past.
	past := time.Now().Add(-time.Minute)
	return errors.Join(
		os.WriteFile(main, p.mainCF(), 0o644),
		os.Chtimes(main, past, past),
		os.WriteFile(filepath.Join(p.ConfigDir(), "master.cf"), p.masterCF(), 0o644))
}

// mainCF is main.cf: what follows, changed by the caller's Main.
func (p *Postfix) mainCF() []byte {
	settings := map[string]string{
		"compatibility_level":   "3.6",
		"queue_directory":       p.QueueDir(),
		"data_directory":        p.dataDir(),
		"maillog_file":          p.logFile(),
		"maillog_file_prefixes": p.cfg.Dir,
		"readme_directory":      "no",
		"html_directory":        "no",

		"myhostname":           p.cfg.Hostname,
		"inet_interfaces":      "loopback-only",
		"inet_protocols":       "ipv4",
		"mynetworks":           "127.0.0.0/8",
		"append_dot_mydomain":  "no",
		"alias_maps":           "",
		"alias_database":       "",
		"mydestination":        "",
		"local_recipient_maps": "",
		"local_transport":      "error:5.1.1 nothing is delivered locally here",
		"notify_classes":       "", // else trouble reports to postmaster join the mail under test

		"smtpd_relay_restrictions":       "permit_mynetworks, reject",
		"smtpd_authorized_xclient_hosts": "127.0.0.1",
		"local_header_rewrite_clients":   "", // else headers are mended before a milter sees them

		// Names come from Hosts alone, and nothing can leave this host.
		"smtp_host_lookup":       "native",
		"smtp_dns_support_level": "disabled",
		"smtp_bind_address":      "127.0.0.1",
	}
	if p.cfg.SASLPluginDir != "" {
		// Postfix's default, and what libsasl2 asks for its plugins' folder.
		settings["import_environment"] = "MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ LANG=C" +
			" POSTLOG_SERVICE POSTLOG_HOSTNAME { SASL_PATH = " + p.cfg.SASLPluginDir + " }"
	}
	maps.Copy(settings, p.cfg.Main)
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = %s\n", name, settings[name])
	}
	return b.Bytes()
}

// masterServices is Debian's master.cf without the services that deliver
// locally or to other programs. smtpd is added with its port.
const masterServices = `pickup    unix  n       -       y       60      1       pickup
cleanup   unix  n       -       y       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       y       1000?   1       tlsmgr
rewrite   unix  -       -       y       -       -       trivial-rewrite
bounce    unix  -       -       y       -       0       bounce
defer     unix  -       -       y       -       0       bounce
trace     unix  -       -       y       -       0       bounce
verify    unix  -       -       y       -       1       verify
flush     unix  n       -       y       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       y       -       -       smtp
relay     unix  -       -       y       -       -       smtp -o syslog_name=postfix/relay
showq     unix  n       -       y       -       -       showq
error     unix  -       -       y       -       -       error
retry     unix  -       -       y       -       -       error
discard   unix  -       -       y       -       -       discard
anvil     unix  -       -       y       -       1       anvil
scache    unix  -       -       y       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
`

// masterCF is master.cf: the services above, changed by the caller's Master.
func (p *Postfix) masterCF() []byte {
	key := func(entry string) string {
		f := strings.Fields(entry)
		return strings.Join(f[:min(2, len(f))], "/")
	}
	replaced := map[string]bool{}
	for _, entry := range p.cfg.Master {
		replaced[key(entry)] = true
	}
	var b strings.Builder
	for line := range strings.Lines(p.addr + " inet n - y - - smtpd\n" + masterServices) {
		if !replaced[key(line)] {
			b.WriteString(line)
		}
	}
	for _, entry := range p.cfg.Master {
		fmt.Fprintln(&b, strings.TrimRight(entry, "\n"))
	}
	return []byte(b.String())
}

// writeChroot puts into the queue directory what chrooted daemons read there.
// Debian's configure-instance.sh copies more; this is the part that is used,
// with our own idea of names.
func (p *Postfix) writeChroot() error {
	etc := filepath.Join(p.QueueDir(), "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return err
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n")
	for _, name := range slices.Sorted(maps.Keys(p.cfg.Hosts)) {
		fmt.Fprintf(&hosts, "%s %s\n", p.cfg.Hosts[name], name)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(etc, "hosts"), []byte(hosts.String()), 0o644),
		os.WriteFile(filepath.Join(etc, "nsswitch.conf"), []byte("hosts: files\n"), 0o644),
		p.copyIn("/etc/services"),
		p.copyIn("/etc/localtime"),
	); err != nil {
		return err
	}
	// Before glibc 2.34, "files" was a library of its own.
	libs, err := filepath.Glob("/lib/*/libnss_files.so.2")
	if err != nil {
		return err
	}
	for _, lib := range libs {
		if err := p.copyIn(lib); err != nil {
			return err
		}
	}
	return nil
}

// copyIn copies a file of the system to the same place in the chroot. One that
// the system lacks is not missed.
func (p *Postfix) copyIn(name string) error {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	to := filepath.Join(p.QueueDir(), name)
	return errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o644))
}
