package classes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/policy"
)

// host is an instance of Postfix that is never started, and what it delivers itself.
type host struct {
	dir   string
	users string // as getent(1) tells them
}

func newHost(t *testing.T, main string, files map[string]string) *host {
	t.Helper()
	h := &host{dir: t.TempDir()}
	master, err := os.ReadFile("/usr/share/postfix/master.cf.dist")
	if err != nil {
		t.Fatalf("these tests need Postfix: %v", err)
	}
	all := map[string]string{"main.cf": "compatibility_level = 3.6\nmyhostname = relay.contoso.com\nalias_maps =\n" + main, "master.cf": string(master),
		"sendas.yaml": "tenant: {id: contoso.onmicrosoft.com, domains: [contoso.com]}\ncredentials: {app: {client_id: 5f2c0d3e-0000-4000-8000-000000000001, client_secret_file: x}}\n" +
			"mailboxes: [{address: relay@contoso.com, credential: app}]\nclients: [{name: lan, networks: [192.0.2.0/24], from: relay@contoso.com}]\n"}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		h.write(t, name, text)
	}
	return h
}

// write makes a file; DIR in it is the folder.
func (h *host) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", h.dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	if name == "main.cf" { // a program of Postfix's waits until it is some seconds old
		past := mustStat(t, path).ModTime().Add(-60e9)
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
	}
}

func mustStat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// run runs Postfix's own programs, and plays getent(1).
func (h *host) run(ctx context.Context, name string, args ...string) (string, string, error) {
	if name == "getent" {
		return strings.ReplaceAll(h.users, "DIR", h.dir), "", nil
	}
	return postfix.Run(ctx, name, args...)
}

func (h *host) setup(t *testing.T) *postfix.Setup {
	t.Helper()
	c, err := config.Load(filepath.Join(h.dir, "sendas.yaml"), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	p, err := postfix.Read(t.Context(), h.run, h.dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (h *host) collect(t *testing.T) *policy.ClassData {
	t.Helper()
	return Collect(t.Context(), h.run, h.setup(t))
}

// table makes a database of a file.
func (h *host) table(t *testing.T, tool, name string) {
	t.Helper()
	if _, _, err := postfix.Run(t.Context(), tool, "-c", h.dir, "hash:"+filepath.Join(h.dir, name)); err != nil {
		t.Fatal(err)
	}
}

// TestCollect: domains, ways and aliases as Postfix has them: in lists, in files, in tables.
func TestCollect(t *testing.T) {
	h := newHost(t, `mydestination = $myhostname, localhost Shop.Example DIR/domains, !not.example not.example
myorigin = DIR/mailname
recipient_delimiter = +-
virtual_alias_maps = hash:DIR/virtual, proxy:texthash:DIR/more
virtual_mailbox_domains = inline:{ {box.example = OK}, {bücher.example = OK} }
virtual_transport = lmtp:unix:private/dovecot-lmtp
relay_domains = partner.example
relayhost = [smtp.office365.com]:587
transport_maps = texthash:DIR/transport socketmap:unix:sendas/credentials:route
sender_dependent_default_transport_maps = inline:{ {@news.example = news:[192.0.2.7]}, {x@y.example = DUNNO} }, socketmap:unix:sendas/credentials:transport
recipient_canonical_maps = inline:{ {old@shop.example = new@shop.example} }
always_bcc = archive@fabrikam.com
recipient_bcc_maps = inline:{ {a@shop.example = b@shop.example} }
alias_maps = hash:DIR/aliases
`, map[string]string{
		"mailname":  "origin.example\n",
		"domains":   "# of the shop\nstore.example, depot.example # both\n",
		"virtual":   "lists.example anything\nall@lists.example bob@shop.example, \"John Q\"@fabrikam.com\n@old.example @shop.example\nInfo@Shop.Example bob\n",
		"more":      "more@lists.example bob@shop.example\nall@lists.example not@this.example\n",
		"transport": "fax.example fax:\n.inner.example smtp:[192.0.2.40]:2525\nplain.example :\nbücher.fax.example fax:\n",
		"aliases":   "root: admin@fabrikam.com, |\"/usr/bin/x, y\", /var/log/mail, \\bob\nTeam: :include:DIR/team\nempty: /dev/null\nbob: bob\n",
		"team":      "# people\nanna@fabrikam.com\nbob, carl\n",

		"home/bob/.forward": "bob@fabrikam.com\n", "home/tom/.forward": "\\tom, \"|/usr/bin/vacation tom\"\n# me too\n<tom@fabrikam.com>\n",
		"home/ann/.forward": "ann@fabrikam.com\n",
	})
	h.users = fmt.Sprintf("bob:x:%[1]d:0::DIR/home/bob:/bin/sh\nTom:x:%[1]d:0::DIR/home/tom:/bin/sh\nann:x:12345:0::DIR/home/ann:/bin/sh\nnobody:x:65534:0::/nonexistent:/bin/sh\nbad\n", os.Getuid())
	h.table(t, "postmap", "virtual")
	h.table(t, "postalias", "aliases")
	got := h.collect(t)
	want := &policy.ClassData{
		Version: 1, Folder: h.dir, Receives: true, Origin: "origin.example", Delimiter: "+-",
		Local: []string{"depot.example", "localhost", "relay.contoso.com", "shop.example", "store.example"}, Alias: []string{"lists.example"},
		Mailbox: []string{"box.example", "xn--bcher-kva.example"}, Relay: []string{"partner.example", ".partner.example"},
		LocalWay: "local:relay.contoso.com", MailboxWay: "lmtp:unix:private/dovecot-lmtp", RelayWay: "relay:[smtp.office365.com]:587",
		Ways:     map[string]string{"fax.example": "fax:", ".inner.example": "smtp:[192.0.2.40]:2525", "plain.example": ":", "xn--bcher-kva.fax.example": "fax:"},
		Defaults: []string{"news", "smtp"},
		Aliases: map[string][]string{"lists.example": {"anything"}, "all@lists.example": {"bob@shop.example", `"John Q"@fabrikam.com`}, "@old.example": {"@shop.example"},
			"info@shop.example": {"bob"}, "more@lists.example": {"bob@shop.example"}, "old@shop.example": {"new@shop.example"}},
		LocalAliases: map[string][]string{"root": {"admin@fabrikam.com", "bob"}, "team": {"anna@fabrikam.com", "bob", "carl"}, "empty": {}, "bob": {"bob"},
			"tom": {"tom", "tom@fabrikam.com"}}, // not what is not the user's own, and aliases(5) come first
		Copies: []string{"archive@fabrikam.com", "b@shop.example"}, Opaque: []policy.OpaqueTable{},
	}
	if !reflect.DeepEqual(got, want) {
		x, _ := json.MarshalIndent(got, "", " ")
		y, _ := json.MarshalIndent(want, "", " ")
		t.Errorf("got\n%s\nwant\n%s", x, y)
	}
	if got := Describe(got); got != "local: depot.example localhost relay.contoso.com shop.example store.example; virtual aliases: lists.example; "+
		"virtual mailboxes: box.example xn--bcher-kva.example; relay: partner.example .partner.example; transport_maps: .inner.example fax.example xn--bcher-kva.fax.example" {
		t.Errorf("described as %s", got)
	}
}

// TestCollectOpaque: what cannot be listed is named, with the doubt that it leaves, and without the
// secrets that may stand in main.cf itself.
func TestCollectOpaque(t *testing.T) {
	for _, tc := range []struct {
		main string
		want []string
	}{
		{`mydestination = shop.example, regexp:DIR/x, DIR/none, !DIR/x
virtual_alias_maps = proxy:ldap:DIR/x.cf
virtual_mailbox_domains = mysql:DIR/x.cf
relay_domains = hash:DIR/none
transport_maps = pcre:DIR/x
sender_dependent_default_transport_maps = ldap:DIR/x.cf
canonical_maps = regexp:DIR/x
recipient_bcc_maps = static:archive@fabrikam.com
alias_maps = ldap:DIR/x.cf, texthash:DIR/aliases, nis:mail.aliases
forward_path = /var/forward/$user
luser_relay = $user@fabrikam.com`, []string{
			"class mydestination regexp:DIR/x", "class mydestination DIR/none", "class mydestination !DIR/x", "class virtual_alias_domains proxy:ldap:DIR/x.cf",
			"class virtual_mailbox_domains mysql:DIR/x.cf", "class relay_domains hash:DIR/none", "way transport_maps pcre:DIR/x",
			"default sender_dependent_default_transport_maps ldap:DIR/x.cf", "alias canonical_maps regexp:DIR/x", "alias virtual_alias_maps proxy:ldap:DIR/x.cf",
			"alias recipient_bcc_maps static:archive@fabrikam.com", "local alias_maps ldap:DIR/x.cf", "local alias_maps :include:DIR/none",
			"local forward_path /var/forward/$user", "local luser_relay $user@fabrikam.com"}}, // NIS stands in Postfix's default, and there is none
		{"virtual_alias_maps = pipemap:{ mysql:DIR/secret.cf, inline:{a=b} }\nvirtual_alias_domains =\nluser_relay = postmaster\nforward_path =", []string{"alias virtual_alias_maps pipemap:…"}},
		// What "sendas postfix enable" writes for senders of a pattern leaves no doubt; another table of patterns beside it does.
		{"mydestination =\nsender_dependent_default_transport_maps = inline:{ {@contoso.com = sendas:[smtp.office365.com]:587} }, " +
			"regexp:{ {if /@contoso[.]com/}, {/^[ac].*[bd]@/ sendas:[smtp.office365.com]:0587}, {endif} }", nil},
		{"mydestination =\nsender_dependent_default_transport_maps = regexp:{ {/@fabrikam[.]com/ smtp:[mail.fabrikam.com]} }",
			[]string{"default sender_dependent_default_transport_maps regexp:…"}},
		{"local_transport = lmtp:unix:private/lmtp\nalias_maps = ldap:DIR/x.cf", nil}, // nobody asks them
	} {
		h := newHost(t, tc.main+"\n", map[string]string{"x": "/./ x\n", "aliases": "team :include:DIR/none\n"})
		var list []string
		for _, o := range h.collect(t).Opaque {
			list = append(list, fmt.Sprintf("%s %s %s", o.Doubt, o.Setting, o.Table))
		}
		if got, want := strings.Join(list, "\n"), strings.ReplaceAll(strings.Join(tc.want, "\n"), "DIR", h.dir); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", tc.main, got, want)
		}
	}
}

// TestSplitAddresses: blanks and commas in quotes divide nothing.
func TestSplitAddresses(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"", ""}, {" , ", ""}, {"a", "a"}, {"a, b\tc", "a|b|c"}, {`"a b"@c, d`, `"a b"@c|d`}, {`"a \" b", c`, `"a \" b"|c`}, {`"a, b`, `"a, b`}, {`a\ b c`, `a\ b|c`}, {"ä, ö", "ä|ö"},
	} {
		if got := strings.Join(splitAddresses(tc.in), "|"); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.in, got, tc.want)
		}
	}
}

// TestForeignForward: root reads nothing for a user that the user could not.
func TestForeignForward(t *testing.T) {
	dir := t.TempDir()
	own, link := filepath.Join(dir, "own"), filepath.Join(dir, "link")
	if err := os.WriteFile(own, []byte("a@b.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(own, link); err != nil {
		t.Fatal(err)
	}
	uid := fmt.Sprint(os.Getuid())
	for _, tc := range []struct {
		path, uid string
		there     bool
	}{{own, uid, true}, {own, "12345", false}, {link, uid, false}, {dir, uid, false}, {filepath.Join(dir, "none"), uid, false}} {
		if text, there := readForward(tc.path, tc.uid); there != tc.there || there != (text != "") {
			t.Errorf("%s of %s: %q, %t", tc.path, tc.uid, text, there)
		}
	}
}

// found runs a check and returns its lines.
func found(h *host, t *testing.T) string {
	t.Helper()
	r := &finding.Report{}
	Check(t.Context(), r.Section("classes", "recipients"), h.run, h.setup(t))
	var list []string
	for _, c := range r.Checks {
		list = append(list, fmt.Sprintf("%s %s: %s", c.Status, c.ID, c.Do))
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// TestCheck: the doctor says what the milter was not told, or is told no longer.
func TestCheck(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: only root can read all of Postfix's tables")
	}
	const shop, alone = "mydestination = $myhostname, shop.example\nvirtual_alias_maps = texthash:DIR/virtual\n", "mydestination = $myhostname, localhost\n"
	h := newHost(t, alone, nil)
	if got := found(h, t); got != "skip classes.kept: " {
		t.Errorf("a host that receives nothing: %s", got)
	}
	h = newHost(t, shop, map[string]string{"virtual": "info@shop.example bob\n"})
	if got := found(h, t); got != "fail classes.kept: sendas postfix enable" {
		t.Errorf("nothing was kept: %s", got)
	}
	path, like := filepath.Join(h.dir, "postfix-classes.json"), filepath.Join(h.dir, "sendas.yaml")
	keep := func() {
		t.Helper()
		if err := Save(path, like, h.collect(t)); err != nil {
			t.Fatal(err)
		}
	}
	keep()
	if got := found(h, t); got != "ok classes.kept: " {
		t.Errorf("all was kept: %s", got)
	}
	h.write(t, "virtual", "info@shop.example bob@fabrikam.com\n")
	if got := found(h, t); got != "warn classes.kept: sendas postfix classes" {
		t.Errorf("an alias has changed: %s", got)
	}
	keep()
	h.write(t, "main.cf", strings.ReplaceAll("compatibility_level = 3.6\nmyhostname = relay.contoso.com\nalias_maps =\n"+shop, "shop.example", "shop.example, new.example"))
	if got := found(h, t); got != "warn classes.kept: sendas postfix classes" {
		t.Errorf("a domain is new: %s", got)
	}
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := found(h, t); got != "fail classes.kept: sendas postfix classes" {
		t.Errorf("the file is broken: %s", got)
	}
	h = newHost(t, "mydestination = shop.example\nvirtual_alias_maps = mysql:DIR/x.cf\nvirtual_alias_domains =\n", nil)
	if got := found(h, t); !strings.HasPrefix(got, "fail classes.kept: ") || !strings.Contains(got, "fail classes.opaque: put what leads outside into a table") {
		t.Errorf("aliases that cannot be listed: %s", got)
	}
	for _, received := range []string{"trust", "reject"} {
		text, err := os.ReadFile(filepath.Join(h.dir, "sendas.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		yaml, _, _ := strings.Cut(string(text), "milter:")
		h.write(t, "sendas.yaml", yaml+"milter: {received: "+received+"}\n")
		if got := found(h, t); strings.Contains(got, "opaque") {
			t.Errorf("received: %s: %s", received, got)
		}
	}
}
