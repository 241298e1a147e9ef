//go:build packagetest

package proof

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// guarded looks at what systemd is there for: the walls around the services, and that they are back
// whatever happens to them.
func (s *site) guarded() {
	s.t.Log("the sandbox is in force")
	s.confined()
	s.t.Log("the limits are in force")
	s.limited()
	s.t.Log("reload")
	s.reload()
	s.t.Log("the sockets start what is stopped")
	s.activated()
	s.t.Log("killed, and stuck")
	s.killed()
	s.stuck()
	s.t.Log("the journal")
	s.journal()
}

// probe runs in the place of a service, before it starts: as its user and behind its walls. Each line
// that it says is something that it can do. The folders named open are open to everybody.
const probe = `#!/bin/bash
for f in /etc/open/f /usr/open/f /srv/open/f /var/lib/open/f /var/spool/postfix/sendas/f /home/open/f /var/tmp/f /var/lib/sendas/f /var/lib/sendas-token/f; do
	if (echo x >$f) 2>/dev/null; then echo "probe: writes $f"; rm -f $f; fi
done
for f in /home/open/there /var/tmp/there /etc/sendas/sendas.yaml /etc/sendas/relay-app.secret /proc/1/status; do
	if cat $f >/dev/null 2>&1; then echo "probe: reads $f"; fi
done
for to in NEAR FAR; do
	if timeout 5 bash -c "exec 3<>/dev/tcp/$to" 2>/dev/null; then echo "probe: reaches $to"; fi
done
if unshare --user true 2>/dev/null; then echo "probe: makes namespaces"; fi
if chmod u+s $STATE_DIRECTORY 2>/dev/null; then echo "probe: makes setuid files"; fi
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | while read name value; do echo "probe: $name $value"; done
echo "probe: end"
`

// able is what each service can do. What is not here it cannot, though the host's permissions would let
// it: its /var/tmp is another one.
var able = map[string]string{
	"milter": "writes /var/tmp/f, writes /var/lib/sendas/f, reads /etc/sendas/sendas.yaml, reaches NEAR, " + caged,
	"token":  "writes /var/tmp/f, writes /var/lib/sendas-token/f, reads /etc/sendas/sendas.yaml, reads /etc/sendas/relay-app.secret, reads /proc/1/status, reaches NEAR, reaches FAR, " + caged,
}

const caged = "CapEff: 0000000000000000, CapBnd: 0000000000000000, NoNewPrivs: 1, Seccomp: 2, end"

// confined lets a probe do in the place of both services what they shall not.
func (s *site) confined() {
	s.t.Helper()
	near, far := listen(s.t, "127.0.0.1:0"), listen(s.t, far+":0")
	slash := func(l net.Listener) string { return strings.Replace(l.Addr().String(), ":", "/", 1) }
	s.write("/usr/local/bin/probe", strings.NewReplacer("NEAR", slash(near), "FAR", slash(far)).Replace(probe), 0o755)
	s.sh("for d in /etc/open /usr/open /srv/open /var/lib/open /home/open; do mkdir $d; chmod 1777 $d; done; echo x > /home/open/there; echo x > /var/tmp/there")
	for name, can := range able {
		unit := "sendas-" + name
		s.dropIn(unit, "ExecStartPre=/usr/local/bin/probe")
		var did []string
		eventually(s.t, "the probe of "+unit, func() bool {
			did = nil
			for line := range strings.Lines(s.logged("^probe: ", "--output=cat --identifier="+unit)) {
				did = append(did, strings.TrimPrefix(strings.TrimSpace(line), "probe: "))
			}
			return len(did) > 0 && did[len(did)-1] == "end"
		})
		got := strings.NewReplacer(slash(near), "NEAR", slash(far), "FAR").Replace(strings.Join(did, ", "))
		if got != can {
			s.t.Errorf("behind the walls of %s one\n%s\nwant\n%s", unit, got, can)
		}
		s.dropIn(unit, "")
		// What the probe has seen holds for the service itself.
		status := s.sh("cat /proc/" + s.show(unit, "MainPID") + "/status")
		for _, line := range []string{"\nSeccomp:\t2\n", "\nNoNewPrivs:\t1\n", "\nCapBnd:\t0000000000000000\n"} {
			want(s.t, "the status of "+unit, status, line)
		}
		s.t.Log(s.sh("systemd-analyze security --no-pager --threshold=15 " + unit + ".service | tail -n 1"))
	}
	s.sh("rm -r /etc/open /usr/open /srv/open /var/lib/open /home/open /var/tmp/there /usr/local/bin/probe")
}

// dropIn changes the service as an administrator does, and "" takes that back.
func (s *site) dropIn(unit, setting string) {
	s.t.Helper()
	dir := "/run/systemd/system/" + unit + ".service.d"
	change := "rm -r " + dir
	if setting != "" {
		change = "mkdir " + dir + "; printf '[Service]\\n%s\\n' '" + setting + "' > " + dir + "/test.conf"
	}
	s.sh(change + "; systemctl daemon-reload; systemctl restart " + unit)
}

// listen takes connections and ends them.
func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return l
}

// limited: systemd has understood the limits, and the kernel has heard of them, where it listens.
func (s *site) limited() {
	s.t.Helper()
	for _, unit := range []string{"sendas-milter", "sendas-token"} {
		for property, value := range map[string]string{"MemoryMax": "1073741824", "TasksMax": "256", "LimitNOFILE": "16384", "WatchdogUSec": "1min", "Restart": "on-failure", "NRestarts": "0"} {
			if got := s.show(unit, property); got != value {
				s.t.Errorf("%s: %s is %q, want %q", unit, property, got, value)
			}
		}
		want(s.t, "the environment of "+unit, s.sh("tr '\\0' '\\n' < /proc/"+s.show(unit, "MainPID")+"/environ"), "GOMEMLIMIT=768MiB\n")
		group := "/sys/fs/cgroup" + s.show(unit, "ControlGroup")
		if most, err := s.try("cat " + group + "/memory.max"); err != nil {
			s.t.Log("an older hierarchy of control groups has the memory of this machine: that the kernel has heard of MemoryMax= was not looked at")
		} else {
			want(s.t, "what the kernel lets "+unit+" take", most, "1073741824\n")
		}
		want(s.t, "the limits of "+unit, s.sh("cat /proc/"+s.show(unit, "MainPID")+"/limits"), "Max open files            16384                16384 ")
	}
}

// reload: a new client is known when systemctl returns, the process is the same one, and a wrong file
// fails and changes nothing.
func (s *site) reload() {
	s.t.Helper()
	pid := s.show("sendas-milter", "MainPID")
	known := func() bool {
		ctx, cancel := context.WithTimeout(s.t.Context(), patience)
		defer cancel()
		s.sent++
		res, err := s.submit(ctx, "10.3.0.9", "")
		if err != nil {
			s.t.Fatal(err)
		}
		if !res.Accepted() {
			s.sent--
		}
		return res.Accepted()
	}
	yaml := s.read("/etc/sendas/sendas.yaml")
	both := edit(s.t, yaml, printers, printers+", "+strangers)
	if known() {
		s.t.Error("a stranger's message was taken")
	}
	s.rewrite(both)
	s.sh("systemctl reload sendas-milter sendas-token")
	if !known() {
		s.t.Error("after the reload the new client is not known")
	}
	s.rewrite(edit(s.t, yaml, printers, "10.2.0.0/99"))
	if said, err := s.try("systemctl reload sendas-milter"); err == nil {
		s.t.Errorf("a reload with a wrong file is well: %s", said)
	}
	if !known() {
		s.t.Error("after a reload that failed the client is not known any more")
	}
	s.rewrite(yaml)
	s.sh("systemctl reload sendas-milter sendas-token")
	if known() {
		s.t.Error("a stranger's message was taken after the reload")
	}
	if now := s.show("sendas-milter", "MainPID"); now != pid {
		s.t.Errorf("the milter was process %s, and is %s after the reload", pid, now)
	}
	s.wait(s.sent)
}

// rewrite replaces the configuration; owner and mode stay.
func (s *site) rewrite(yaml string) {
	s.t.Helper()
	if err := os.WriteFile(s.path("/etc/sendas/sendas.yaml"), []byte(yaml), 0o640); err != nil {
		s.t.Fatal(err)
	}
}

// activated: mail starts services that are stopped, and none is refused.
func (s *site) activated() {
	s.t.Helper()
	s.sh("systemctl stop sendas-milter.service sendas-token.service")
	s.wantActive("inactive", "sendas-milter.service", "sendas-token.service")
	s.wantActive("active", "sendas-milter.socket", "sendas-policy.socket", "sendas-token.socket")
	s.send(1)
	s.wait(s.sent)
	s.wantActive("active", units...)
}

// killed: what dies at once is back soon, and mail that comes meanwhile waits and is taken.
func (s *site) killed() {
	s.t.Helper()
	for _, unit := range []string{"sendas-milter", "sendas-token"} {
		s.again(unit, func() {
			s.sh("systemctl kill --signal=KILL " + unit)
			s.send(1)
		})
	}
	s.wait(s.sent)
}

// stuck: what does not move any more is ended and started again. The units wait for a minute.
func (s *site) stuck() {
	s.t.Helper()
	for _, unit := range []string{"sendas-milter", "sendas-token"} {
		s.dropIn(unit, "WatchdogSec=5s")
		s.again(unit, func() {
			s.sh("kill -STOP " + s.show(unit, "MainPID"))
			s.send(1)
		})
		want(s.t, "the journal", s.logged("Watchdog timeout", "--unit="+unit), "Watchdog timeout")
		s.dropIn(unit, "")
	}
	s.wait(s.sent)
}

// again does something to a service and waits until systemd has started it once more.
func (s *site) again(unit string, do func()) {
	s.t.Helper()
	pid, times := s.show(unit, "MainPID"), s.show(unit, "NRestarts")
	do()
	eventually(s.t, "the restart of "+unit, func() bool {
		return s.show(unit, "ActiveState") == "active" && s.show(unit, "MainPID") != pid
	})
	if now, _ := strconv.Atoi(s.show(unit, "NRestarts")); strconv.Itoa(now-1) != times {
		s.t.Errorf("%s was restarted %s times before, and %d times now", unit, times, now)
	}
}

// journal: the queue id of a message finds what Postfix and both services say of it.
func (s *site) journal() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	id := s.sendOne(ctx, "").QueueID()
	s.wait(s.sent)
	for _, program := range []string{"sendas-milter", "postfix/cleanup", "postfix/smtp"} {
		eventually(s.t, "a line of "+program+" with "+id, func() bool { return s.logged(id, "--identifier="+program+" --facility=mail") != "" })
	}
	want(s.t, "the journal of the token service", s.logged("erp@contoso", "--identifier=sendas-token --facility=mail"), "erp@contoso.com")
	if said := s.logged("secret|Bearer|eyJ", "--identifier=sendas-token --identifier=sendas-milter"); strings.Contains(said, secret) || strings.Contains(said, "Bearer ey") {
		s.t.Errorf("the journal shows a secret:\n%s", said)
	}
}
