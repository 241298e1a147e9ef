package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/dns"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/milter/queue"
)

// eyesAdvice is about what root does not see: root may do everything, sees the whole file system,
// and reads the file that the service has not loaded.
var eyesAdvice = map[string]finding.Advice{
	"shut":      {Means: "{user} may not {act} here, though root may: {effect}", Do: "{do}"},
	"peer":      {Means: "Postfix runs as {user}, which token.peers does not name: both services send it away, no mail is taken and none leaves", Do: "write peers: [{user}] below token: in sendas.yaml, and type: systemctl reload sendas-token sendas-milter"},
	"down":      {Means: "no mail is taken and none leaves", Do: "{postfix} start; its log: journalctl -u 'postfix*'"},
	"jail":      {Means: "smtp(8) is chrooted into {jail} and asks by this file, not by the host's: Microsoft's server is looked for elsewhere, or not found", Do: "cp {file} {copy} && {postfix} reload"},
	"jailed-ca": {Means: "smtp(8) is chrooted into {jail} and reads the certificates that it trusts there: no server proves to be Microsoft's", Do: "{postconf} -P '{key}/smtp_tls_CAfile={bundle}' && {postfix} reload, since a file is read before the chroot"},
	"refused":   {Means: "the service refused the file when it was told to load it, and goes on with the one of {loaded}", Do: "mend what \"sendas check\" names, then type: systemctl reload {unit}"},
	"older":     {Means: "what the file says now is not in force", Do: "systemctl reload {unit}"},
	"restart":   {Means: "these keys take effect at the next start only", Do: "systemctl restart {unit}"},
	"writable":  {Means: "others than root may put another {what} there, and so send mail under any name", Do: "chown root {path} && chmod go-w {path}"},
	"milter":    {Means: "the milter, which reads strangers' mail, may read what is the token service's alone", Do: "chgrp {user} {path} && chmod 0640 {path}"},
}

// An account is a user as the kernel knows it.
type account struct {
	name string
	uid  uint32
	gids []uint32
}

// lookUp finds a user; false where there is none.
func (d *Walk) lookUp(name string) (account, bool) {
	uid, gids, err := d.account(name)
	return account{name, uid, gids}, err == nil
}

// A door is a file or folder that keeps a user out.
type door struct {
	path string
	info os.FileInfo
}

// permission is what a user wants of a file, as [service.MayRead] says.
type permission func(info os.FileInfo, uid uint32, gids []uint32) bool

// barred follows a path below base as a user, and returns what keeps him out: a folder, or the file
// itself. What is not there keeps nobody out.
func (a account) barred(base, path string, may permission) *door {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	for _, folder := range foldersOf(base, path) {
		if info, err := os.Stat(folder); err == nil && !service.MayEnter(info, a.uid, a.gids) {
			return &door{folder, info}
		}
	}
	if info, err := os.Stat(path); err == nil && !may(info, a.uid, a.gids) {
		return &door{path, info}
	}
	return nil
}

// foldersOf returns the folders below base, or below the root, on the way to a file.
func foldersOf(base, path string) []string {
	var list []string
	for dir := filepath.Dir(path); dir != base; dir = filepath.Dir(dir) {
		list = append(list, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	slices.Reverse(list)
	return list
}

// mode writes who owns a file, and who may do what.
func (d *door) mode() string {
	owner := "?"
	if st, ok := d.info.Sys().(*syscall.Stat_t); ok {
		owner = fmt.Sprintf("%d:%d", st.Uid, st.Gid)
	}
	return fmt.Sprintf("%s has the mode %04o and belongs to %s", d.path, d.info.Mode().Perm(), owner)
}

// checkEyes looks once more at what root sees too well: as Postfix's user, as the services' users,
// within the chroot, and at what the services have loaded.
func (d *Walk) checkEyes(ctx context.Context) {
	s := d.Section("eyes", "seen by")
	if d.postfix != nil {
		d.checkMaster(ctx, s)
		d.checkJail(s)
	}
	token, milter := config.Addresses(d.File)
	if d.config != nil {
		token, milter = d.config.Token.HTTP, d.config.Milter.HTTP
	}
	inForce := []*running{d.askRunning(ctx, s, "milter", "sendas-milter", milter)}
	if !d.observes() {
		inForce = append(inForce, d.askRunning(ctx, s, "token", "sendas-token", token))
	}
	d.checkRunning(s, slices.DeleteFunc(inForce, func(r *running) bool { return r == nil }))
	if d.config == nil {
		return // said already
	}
	if d.postfix != nil {
		d.checkOwner(s)
	}
	d.checkReaders(s)
	d.checkWriters(s)
}

// checkMaster asks whether Postfix runs, which only root may.
func (d *Walk) checkMaster(ctx context.Context, s finding.Section) {
	const id, what = "master", "postfix status"
	if os.Geteuid() != 0 {
		s.Skip(id, what, "only root may ask; type it as root")
		return
	}
	if _, _, err := d.run(ctx, "postfix", "-c", d.postfix.Main["config_directory"], "status"); err != nil {
		d.down = true
		s.Fail(id, what, "Postfix does not run", eyesAdvice["down"].With("postfix", d.postfix.Command("postfix")))
		return
	}
	s.Ok(id, what, "Postfix runs")
}

// checkOwner looks at sockets and token.peers as the user as whom Postfix's daemons connect.
func (d *Walk) checkOwner(s finding.Section) {
	owner, ok := d.lookUp(d.postfix.Main["mail_owner"])
	if !ok {
		return // said by Postfix's own checks
	}
	c, queue := d.config, d.postfix.Main["queue_directory"]
	sockets := []struct{ id, path, effect string }{
		{"milter", c.Milter.Listen.Path(), "every client gets 451"}, {"policy", c.Milter.PolicyListen.Path(), "every recipient is deferred"},
		{"credentials", c.Token.Listen.Path(), "all mail waits in the queue"},
	}
	if d.observes() {
		sockets = sockets[:1]
		sockets[0].effect = "no mail is seen"
	}
	for _, socket := range sockets {
		if info, err := os.Stat(socket.path); socket.path == "" || err != nil || info.Mode()&os.ModeSocket == 0 {
			continue // said already
		}
		what := owner.name + ", socket " + socket.path
		shut := owner.barred(queue, socket.path, service.MayConnect)
		if shut == nil {
			s.Ok("socket."+socket.id, what, "%s may connect", owner.name)
			continue
		}
		if shut.info.IsDir() && d.failed("postfix.folder") {
			s.Skip("socket."+socket.id, what, "%s, as said above", shut.mode())
			continue
		}
		do := "chmod 0755 " + shut.path
		if !shut.info.IsDir() {
			do = "chmod 0666 " + shut.path + "; where a unit of systemd makes the socket, write SocketMode=0666 there"
		}
		s.Fail("socket."+socket.id, what, shut.mode(), eyesAdvice["shut"].With("user", owner.name, "act", "connect", "effect", socket.effect, "do", do))
	}
	if !slices.ContainsFunc(c.Token.Peers, func(name string) bool { a, ok := d.lookUp(name); return ok && a.uid == owner.uid }) {
		s.Fail("peers", owner.name+", token.peers", strings.Join(c.Token.Peers, " "), eyesAdvice["peer"].With("user", owner.name))
	}
}

// checkJail compares what a chrooted smtp(8) finds Microsoft's server by with what this host does.
func (d *Walk) checkJail(s finding.Section) {
	t := d.postfix.Submission()
	if t == nil || d.postfix.Jail(t) == "" {
		return
	}
	jail := d.postfix.Jail(t)
	advice := func(key, file, copy string) finding.Advice {
		return eyesAdvice[key].With("jail", jail, "file", file, "copy", copy, "postfix", d.postfix.Command("postfix"),
			"postconf", d.postfix.Command("postconf"), "key", t.Key(), "bundle", filepath.Join(d.etc, "ssl/certs/ca-certificates.crt"))
	}
	host, _, _ := net.SplitHostPort(d.settings().Tenant.Endpoints.Submission)
	for _, f := range []struct {
		name string
		read func([]byte) string // what counts in it
	}{{"resolv.conf", dns.Nameservers}, {"hosts", func(b []byte) string { return dns.HostAddresses(b, host) }}} {
		own, copied := filepath.Join(d.etc, f.name), filepath.Join(jail, "etc", f.name)
		want, err := os.ReadFile(own)
		if err != nil || f.read(want) == "" && f.name == "hosts" && !exists(copied) {
			continue
		}
		got, err := os.ReadFile(copied)
		id, what := "jail."+f.name, "smtp, "+copied
		switch {
		case err != nil && f.read(want) != "":
			s.Fail(id, what, "is not there", advice("jail", own, copied))
		case f.read(got) != f.read(want):
			s.Fail(id, what, fmt.Sprintf("says %q, and %s says %q", f.read(got), own, f.read(want)), advice("jail", own, copied))
		default:
			s.Ok(id, what, "says what %s says", own)
		}
	}
	path := d.postfix.Value(t, "smtp_tls_CApath")
	if path == "" || d.postfix.Value(t, "smtp_tls_CAfile") != "" {
		return
	}
	if list, err := os.ReadDir(filepath.Join(jail, path)); err != nil || len(list) == 0 {
		s.Fail("jail.ca", "smtp, smtp_tls_CApath "+path, "is empty or not there within the chroot", advice("jailed-ca", "", ""))
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// running is what a service has in force.
type running struct {
	name, unit string
	service.Config
}

// askRunning asks a service which configuration is in force; nil where that was said already, or it
// does not tell.
func (d *Walk) askRunning(ctx context.Context, s finding.Section, name, unit, addr string) *running {
	if addr == "" {
		return nil // said already
	}
	client := &http.Client{Timeout: socketTime, Transport: &http.Transport{DialContext: d.dial, DisableKeepAlives: true}}
	raw, err := service.Fetch(ctx, client, addr, "/status")
	var status struct {
		Config *service.Config `json:"config"`
		Queue  *queue.Status   `json:"queue"` // of the milter
	}
	if err != nil || json.Unmarshal(raw, &status) != nil || status.Config == nil {
		return nil // said already: it is down, or somebody else
	}
	if q := status.Queue; q != nil && !q.Readable && !d.down && d.config != nil && d.config.Milter.QueueSocket != "" && !d.startedAfter(q.ReadAt) {
		s.Warn("queue", unit+", Postfix's queue", q.Error, waitingAdvice["blind"].With("act", cmp.Or(q.Hint, "journalctl -u "+unit)))
	}
	return &running{name, unit, *status.Config}
}

// startedAfter reports whether Postfix was started after a moment, by the file that master(8) writes
// then: what was seen of it before is no longer so.
func (d *Walk) startedAfter(at time.Time) bool {
	if d.postfix == nil {
		return false
	}
	info, err := os.Stat(filepath.Join(d.postfix.Main["queue_directory"], "pid", "master.pid"))
	return err == nil && info.ModTime().After(at)
}

// checkRunning compares what is in force with the file. What holds for both services is told once.
func (d *Walk) checkRunning(s finding.Section, list []*running) {
	info, fileErr := os.Stat(d.File)
	state := func(r *running) string {
		switch {
		case d.config == nil && fileErr == nil: // the file is refused, as is said already, and so is what follows of it
			return ""
		case !r.OK:
			return "refused"
		case fileErr == nil && info.ModTime().Truncate(time.Second).After(r.LoadedAt):
			return "older"
		}
		return ""
	}
	told := ""
	for i, r := range list {
		loaded := r.LoadedAt.UTC().Format(time.RFC3339)
		id, what, units := "config."+r.name, r.unit+", configuration in force", r.unit
		if i == 0 && len(list) > 1 && state(list[1]) == state(r) {
			units += " " + list[1].unit
		}
		fill := func(key string) finding.Advice { return eyesAdvice[key].With("unit", units, "loaded", loaded) }
		switch now := state(r); {
		case now != "" && now == told:
			s.Skip(id, what, "as that of %s", list[0].unit)
		case now == "refused":
			s.Fail(id, what, "the last reload was refused", fill(now))
		case now == "older":
			s.Warn(id, what, fmt.Sprintf("was loaded at %s, and the file is of %s", loaded, info.ModTime().UTC().Format(time.RFC3339)), fill(now))
		case d.config == nil:
			s.Ok(id, what, "the service goes on with what was loaded at %s", loaded)
		default:
			s.Ok(id, what, "was loaded at %s", loaded)
		}
		told = state(r)
		if len(r.NeedsRestart) > 0 {
			s.Warn(id+".restart", r.unit, "needs a restart for "+strings.Join(r.NeedsRestart, ", "), eyesAdvice["restart"].With("unit", r.unit))
		}
	}
}

// checkReaders looks whether the services' users may read sendas.yaml, and whether the milter's may
// read what it should not.
func (d *Walk) checkReaders(s finding.Section) {
	told := ""
	for _, name := range []string{service.MilterUser, service.TokenUser} {
		a, ok := d.lookUp(name)
		if !ok {
			continue // the services run as somebody else here
		}
		shut := a.barred("", d.File, service.MayRead)
		switch {
		case shut == nil:
			s.Ok("reads."+name, name+", "+d.File, "may read it")
			continue
		case shut.path == told:
			s.Skip("reads."+name, name+", "+d.File, "%s, as said above", shut.mode())
			continue
		}
		told = shut.path
		do := fmt.Sprintf("chgrp %s %[2]s && chmod 0640 %[2]s", service.MilterUser, shut.path)
		if shut.info.IsDir() {
			do = "chmod 0755 " + shut.path
		}
		s.Fail("reads."+name, name+", "+d.File, shut.mode(), eyesAdvice["shut"].With("user", name, "act", "read", "effect", "its service does not start again, and refuses each reload", "do", do))
	}
	a, ok := d.lookUp(service.MilterUser)
	if !ok {
		return
	}
	for i, file := range secretFiles(d.config) {
		info, err := os.Stat(file)
		if err == nil && info.Mode().Perm()&0o004 != 0 {
			continue // everybody may, which is said with its credential
		}
		if err == nil && a.barred("", file, service.MayRead) == nil && a.uid != 0 {
			s.Warn("secret."+strconv.Itoa(i+1), a.name+", "+file, "may read it", eyesAdvice["milter"].With("user", service.TokenUser, "path", file))
		}
	}
}

// secretFiles are the files that prove who we are, sorted.
func secretFiles(c *config.Site) []string {
	var list []string
	for _, cc := range c.Credentials {
		key := cc.KeyFile
		if key == "" {
			key = cc.CertificateFile // holds both
		}
		for _, f := range []string{key, cc.ClientSecretFile, cc.TokenFile} {
			if filepath.IsAbs(f) {
				list = append(list, f)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// checkWriters finds who else could put another configuration or secret in the place of ours.
func (d *Walk) checkWriters(s finding.Section) {
	seen, good := make(map[string]bool), true
	look := func(path, what string) {
		for _, p := range append(foldersOf("", path), path) {
			info, err := os.Stat(p)
			if err != nil || seen[p] || !othersWrite(info, d.writers()) {
				continue
			}
			if what == "configuration" && p == path && d.failed("config.") { // the services refuse it for that, as is said above
				good = false
				continue
			}
			seen[p], good = true, false
			s.Fail("writes."+strconv.Itoa(len(seen)), "everybody, "+p, (&door{p, info}).mode(), eyesAdvice["writable"].With("what", what, "path", p))
		}
	}
	if file, err := filepath.Abs(d.File); err == nil {
		if file, err = filepath.EvalSymlinks(file); err == nil {
			look(file, "configuration")
		}
	}
	for _, file := range secretFiles(d.config) {
		look(file, "secret")
	}
	if good {
		s.Ok("writes", "everybody, the files", "nobody else may write sendas.yaml, the secrets and their folders")
	}
}

// writers are the users who may own our files: root, whoever runs the doctor, and the token service,
// which owns secrets.
func (d *Walk) writers() []uint32 {
	list := []uint32{0, uint32(os.Geteuid())}
	if a, ok := d.lookUp(service.TokenUser); ok {
		list = append(list, a.uid)
	}
	return list
}

// othersWrite reports whether somebody else than the owners may write a file, or put another one
// into a folder. In a folder with the sticky bit everybody keeps to what is his (unlink(2)).
func othersWrite(info os.FileInfo, owners []uint32) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.IsDir() && info.Mode()&os.ModeSticky != 0 {
		return false
	}
	mode := info.Mode().Perm()
	return mode&0o002 != 0 || mode&0o020 != 0 && st.Gid != 0 || !slices.Contains(owners, st.Uid)
}
