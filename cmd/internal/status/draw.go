package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/width"

	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/lease"
)

// A canvas is what a picture is drawn on.
type canvas struct {
	cols, rows int
	blocks     bool // it shows block characters, else ASCII alone
	color      bool
}

// draw returns the lines of the picture: no more than there are rows, none wider than there are
// columns. It is pure.
func (v *view) draw(c canvas) []string {
	queued, level := v.queueState()
	j := v.judged()
	lines := append([]string{c.painted(j.level(), j.sentence())}, c.needs(j)...)
	lines = append(lines,
		c.clip("sendas  "+v.heading()+"  (Ctrl-C ends)"),
		c.painted(serviceLevel(v.tokenTrouble(), v.token != nil && v.token.Config != nil && !v.token.Config.OK), "token service  "+v.tokenState()),
		c.painted(serviceLevel(v.milterErr, v.milter != nil && v.milter.Config != nil && !v.milter.Config.OK), "milter         "+v.milterState()),
		c.painted(level, "queue          "+queued))
	if v.observes() {
		lines = append(lines, c.clip("mode           "+observeWords))
	}
	room := c.rows - len(lines)
	panels := v.panels(c, j, false)
	if total(panels) > room {
		panels = v.panels(c, j, true)
	}
	lines = append(lines, c.layout(panels, room)...)
	return lines[:min(len(lines), max(1, c.rows))]
}

func serviceLevel(err error, old bool) string {
	switch {
	case err != nil:
		return hot
	case old:
		return warm
	}
	return calm
}

// A panel is a table of the picture.
type panel struct {
	head  string     // one line
	rows  [][]string // each is one line, with its notes below
	more  int        // rows that there is no room for anyway
	what  string     // what the rows are
	share int        // the part of the height that it may take where there is not room for all: 1/share; 0 is the rest
}

// panels makes the tables. Where there is not room for all, those with most to do come first.
func (v *view) panels(c canvas, j *judgement, crowded bool) (list []panel) {
	if v.token != nil {
		list = append(list, credentialPanel(c, v.token.Credentials, v.token.Time), mailboxPanel(c, v.token.Status, j.about, crowded))
	}
	if v.milter != nil {
		list = append(list, clientPanel(c, v.milter.Status, j.about, crowded))
	}
	return list
}

// total is how many lines the panels take.
func total(list []panel) (n int) {
	for i := range list {
		n += list[i].height()
	}
	return n
}

// layout puts panels into so many lines, with a blank line before each.
func (c canvas) layout(list []panel, lines int) (out []string) {
	room := make([]int, len(list))
	crowded, rest := total(list) > lines, lines
	for i := range list {
		room[i] = list[i].height()
		if list[i].share == 0 {
			continue
		}
		if crowded {
			room[i] = min(room[i], lines/list[i].share)
		}
		rest -= room[i]
	}
	for i := range list {
		if list[i].share == 0 {
			room[i] = min(room[i], rest)
		}
		out = append(out, list[i].fit(c, room[i])...)
	}
	return out
}

// height is how many lines the whole panel takes.
func (p *panel) height() int {
	n := 2 + min(1, p.more)
	for _, r := range p.rows {
		n += len(r)
	}
	return n
}

// fit returns the panel in so many lines at most, or nothing if that is too few.
func (p *panel) fit(c canvas, lines int) []string {
	if lines < 3 {
		return nil
	}
	out, left := []string{"", p.head}, p.more+len(p.rows)
	for _, r := range p.rows {
		if left > 1 && len(out)+len(r) >= lines || len(out)+len(r) > lines {
			break
		}
		out = append(out, r...)
		left--
	}
	if left > 0 {
		out = append(out, c.clip(fmt.Sprintf("%s %d more %s", c.ellipsis(), left, p.what)))
	}
	return out
}

// credentialPanel has a line for each credential, and below it what is wrong.
func credentialPanel(c canvas, list []lease.CredentialStatus, now time.Time) panel {
	sorted := pointers(list)
	slices.SortStableFunc(sorted, func(a, b *lease.CredentialStatus) int { // first those that need somebody
		return cmpBool(a.Token.Live || !a.InUse, b.Token.Live || !b.InUse)
	})
	t := table{c: c, columns: []column{{head: "credential", keep: 9}, {head: "token", keep: 8}, {head: "last refresh", keep: 5}, {head: "proof", keep: 6}}}
	for _, x := range sorted {
		t.add(credentialCells(x, now), credentialTrouble(x, now))
	}
	return panel{head: t.head(), rows: t.lines(), what: "credentials", share: 4}
}

func credentialCells(x *lease.CredentialStatus, now time.Time) []tableCell {
	cells := []tableCell{{text: x.Name}, {text: "not in use"}, {}, {}}
	if x.InUse {
		cells[1] = tableCell{text: "NONE", level: hot}
		if x.Token.Live {
			cells[1] = tableCell{text: "ends " + whenWords(x.Token.Expires, now)}
		}
		cells[2] = tableCell{text: refreshWords(x, now)}
		if x.Refresh.Error != nil {
			cells[2].level = warm
		}
	}
	switch {
	case x.Proof != nil && x.Proof.Refused != nil:
		cells[3] = tableCell{text: fmt.Sprintf("%s REFUSED (%s)", x.Proof.Kind, x.Proof.Refused.Code), level: hot}
	case x.SignIn != nil && x.SignIn.Since != nil && signInLevel(x.SignIn) != calm:
		cells[3] = tableCell{text: signInShort(x.SignIn, now), level: signInLevel(x.SignIn)}
	case x.Proof != nil && x.Proof.Ends != nil:
		cells[3] = tableCell{text: x.Proof.Kind + " ends " + whenWords(x.Proof.Ends, now), level: proofLevel(x, now)}
		if x.Proof.Ends.Before(now) && !outlived(x) {
			cells[3].text = x.Proof.Kind + " ENDED"
		}
	case x.SignIn != nil && x.SignIn.Since != nil:
		cells[3] = tableCell{text: signInShort(x.SignIn, now), level: signInLevel(x.SignIn)}
	case x.SignIn != nil:
		cells[3] = tableCell{text: "nobody has signed in", level: hot}
	}
	return cells
}

// signInShort is signInWords in a few words.
func signInShort(s *lease.SignInStatus, now time.Time) string {
	switch {
	case s.Refused != nil:
		return fmt.Sprintf("sign-in REFUSED (%s)", s.Refused.Code)
	case s.IdleDays >= s.MaxDays:
		return "sign-in VOID"
	case s.Kept:
		return "sign-in NOT RENEWED, ends " + whenWords(s.Ends, now)
	}
	return "signed in" + whenAfter(", renewed ", s.Renewed, now)
}

// credentialTrouble says why there is no new token.
func credentialTrouble(x *lease.CredentialStatus, now time.Time) (notes []pageNote) {
	if e := x.Refresh.Error; x.InUse && e != nil { // what to do stands above
		notes = append(notes, pageNote{warm, e.Text})
	}
	if skew := time.Duration(x.Skew * float64(time.Second)); skew.Abs() > entra.MaxSkew {
		notes = append(notes, pageNote{warm, "clock: " + skewWords(skew)})
	}
	return notes
}

// mailboxPanel has a line for each mailbox, and below it why it is paused and what its last answer
// means.
func mailboxPanel(c canvas, s *lease.Status, about map[string]string, crowded bool) panel {
	t := table{c: c, columns: []column{{head: "mailbox", keep: 9}, {head: "messages", keep: 8, bar: true}, {head: "recipients", keep: 6, bar: true},
		{head: "leases", keep: 5}, {head: "waiting", keep: 7}, {head: "last answer", keep: 4}}}
	for _, g := range s.Groups {
		t.add([]tableCell{{text: groupName(g.Name)}, {text: "together"}, usedCell(&lease.MailboxStatus{}, limit.KindRecipients, g.Recipients), {}, {}, {}}, nil)
	}
	shown, more := firstOf(mailboxesInOrder(s.Mailboxes, about, crowded), c.rows)
	said := make(map[string]bool)
	for _, m := range shown {
		t.add([]tableCell{{text: m.Mailbox, level: about[m.Mailbox]}, usedCell(m, limit.KindMessages, m.Messages), usedCell(m, limit.KindRecipients, m.Recipients), leaseCell(m),
			{text: number(m.Waiting)}, answerCell(m, s.Time)}, mailboxNotes(m, about, said, s.Time))
	}
	return panel{head: t.head(), rows: t.lines(), more: more, what: "mailboxes"}
}

// leaseCell is the leases that are out, and how many may be: fewer after a 432.
func leaseCell(m *lease.MailboxStatus) tableCell {
	switch {
	case m.Pattern:
		return tableCell{text: fmt.Sprint(m.Leases)}
	case m.InForce < m.Connections:
		return tableCell{text: fmt.Sprintf("%d/%d (%d)", m.Leases, m.InForce, m.Connections)}
	}
	return tableCell{text: fmt.Sprintf("%d/%d", m.Leases, m.InForce)}
}

func answerCell(m *lease.MailboxStatus, now time.Time) tableCell {
	if m.LastVerdict == nil {
		return tableCell{text: "none yet"}
	}
	return tableCell{text: lastVerdictWords(m.LastVerdict, now), level: answerLevel(m.LastVerdict.Class)}
}

// usedCell is a bar with its figures.
func usedCell(m *lease.MailboxStatus, kind limit.Kind, u *lease.UsageStatus) tableCell {
	switch {
	case m.Pattern:
		return tableCell{text: "per sender"}
	case u == nil:
		return tableCell{text: usageWords(m, kind, u)}
	}
	return tableCell{text: number(u.Used) + "/" + number(u.Limit), level: windowLevel(u), bar: true, used: u.Used, most: u.Limit}
}

// clientPanel has a line for each client: the limit that is used most, and what became of its mail.
func clientPanel(c canvas, s *milter.Status, about map[string]string, crowded bool) panel {
	t := table{c: c, columns: []column{{head: "client", keep: 9}, {head: "limit used most", keep: 8, bar: true}}}
	for i, a := range clientActions() {
		t.columns = append(t.columns, column{head: a.Done(), keep: 7 - i})
	}
	shown, more := firstOf(clientsInOrder(s.Clients, about, crowded), c.rows)
	for _, x := range shown {
		var notes []pageNote
		if x.Over {
			notes = []pageNote{{calm, overWords(x.Over, x.OnLimit)}}
		}
		t.add(clientCells(x.Client, x.Limits, &x.Counts), notes)
	}
	for _, x := range s.Identities {
		t.add(clientCells(x.Identity, x.Limits, nil), nil)
	}
	return panel{head: t.head(), rows: t.lines(), more: more, what: "clients", share: 3}
}

func clientCells(name string, limits []milter.LimitStatus, n *milter.Counts) []tableCell {
	used := tableCell{text: "no limits"}
	share := -1.0
	for i, l := range limits {
		if x := clientShare(limits[i : i+1]); x > share {
			share = x
			used = tableCell{text: fmt.Sprintf("%s/%s %s", number(l.Used), number(l.Limit), l.Kind), bar: true, used: l.Used, most: l.Limit}
		}
	}
	if n == nil { // an identity: its messages are counted with the clients
		return []tableCell{{text: name}, used, {}, {}, {}, {}}
	}
	cells := []tableCell{{text: name}, used}
	for _, a := range clientActions() {
		cells = append(cells, tableCell{text: number(n.Became(a))})
	}
	return cells
}

// A table lays cells out in columns: where there is not room for all, those with the lowest keep go
// first, and bars take what is left.
type table struct {
	c       canvas
	columns []column
	cells   [][]tableCell
	notes   [][]pageNote

	widths []int // of the texts; 0: the column is left out
	bars   int   // the width of each bar; 0: none
}

type column struct {
	head string
	keep int // the higher, the longer it stays
	bar  bool
}

type tableCell struct {
	text, level string
	bar         bool
	used, most  int
}

// Widths in columns of the terminal.
const (
	gap      = 2 // between two columns
	leastBar = 5
	mostBar  = 20
	leastKey = 12 // of the first column
)

func (t *table) add(cells []tableCell, notes []pageNote) {
	for i := range cells {
		cells[i].text = plainText(cells[i].text)
	}
	t.cells, t.notes = append(t.cells, cells), append(t.notes, notes)
}

// measure decides on the columns.
func (t *table) measure() {
	if t.widths != nil {
		return
	}
	t.widths = make([]int, len(t.columns))
	bars := 0
	for i, k := range t.columns {
		t.widths[i] = textWidth(k.head)
		for _, r := range t.cells {
			t.widths[i] = max(t.widths[i], textWidth(r[i].text))
		}
		if k.bar {
			bars++
		}
	}
	order := slices.SortedFunc(slices.Values(t.columns), func(a, b column) int { return cmp.Compare(a.keep, b.keep) })
	for _, drop := range order {
		if t.total()+bars*(leastBar+1) <= t.c.cols || drop.keep == 9 {
			break
		}
		i := slices.Index(t.columns, drop)
		if drop.bar {
			bars--
		}
		t.widths[i] = 0
	}
	room := t.c.cols - t.total()
	if bars > 0 && room >= bars*(leastBar+1) {
		t.bars = min(mostBar, room/bars-1)
	}
	if room < 0 {
		t.widths[0] = max(leastKey, t.widths[0]+room)
	}
}

// total is the width without bars.
func (t *table) total() int {
	n := -gap
	for _, w := range t.widths {
		if w > 0 {
			n += w + gap
		}
	}
	return n
}

func (t *table) head() string {
	cells := make([]tableCell, len(t.columns))
	for i, k := range t.columns {
		cells[i].text = k.head
	}
	return t.c.dim(t.line(cells))
}

// lines returns the rows, each with its notes below.
func (t *table) lines() [][]string {
	rows := make([][]string, len(t.cells))
	for i, cells := range t.cells {
		rows[i] = []string{t.line(cells)}
		for _, n := range t.notes[i] {
			rows[i] = append(rows[i], t.c.note(n)...)
		}
	}
	return rows
}

// line returns one row.
func (t *table) line(cells []tableCell) string {
	t.measure()
	var b strings.Builder
	room, blanks := t.c.cols, 0
	for i, k := range t.columns {
		if t.widths[i] == 0 || room <= 0 {
			continue
		}
		b.WriteString(strings.Repeat(" ", blanks))
		if k.bar && t.bars > 0 {
			b.WriteString(t.c.paint(cells[i].level, t.c.bar(cells[i], t.bars)) + " ")
			room -= t.bars + 1
		}
		text := cut(cells[i].text, min(t.widths[i], room), t.c.ellipsis())
		b.WriteString(t.c.paint(cells[i].level, text))
		blanks = t.widths[i] - textWidth(text) + gap
		room -= t.widths[i] + gap
	}
	return strings.TrimRight(b.String(), " ")
}

// needsPart is which part of the height the needs may take: a third.
const needsPart = 3

// needs are what needs somebody, in so many lines as there is room for.
func (c canvas) needs(j *judgement) (lines []string) {
	room := c.rows / needsPart
	for i, n := range j.needs {
		x := c.note(pageNote{n.Level(), fmt.Sprintf("%d. %s", i+1, n.What)})
		if a := n.advice(); a != "" {
			x = append(x, c.note(pageNote{calm, a})...)
		}
		if len(lines)+len(x) > room && i > 0 {
			return append(lines, c.clip(fmt.Sprintf("%s %d more", c.ellipsis(), len(j.needs)-i)))
		}
		lines = append(lines, x...)
	}
	if len(lines) > 0 {
		lines = append(lines, "")
	}
	return lines
}

// noteLines is how many lines one note may take.
const noteLines = 3

// note folds a note below its row.
func (c canvas) note(n pageNote) (lines []string) {
	indent := strings.Repeat(" ", min(gap, c.cols/8))
	text := plainText(n.Text)
	for len(lines) < noteLines && text != "" {
		room := max(1, c.cols-len(indent))
		if len(lines) == noteLines-1 {
			return append(lines, indent+c.paint(n.Level, cut(text, room, c.ellipsis())))
		}
		var line string
		line, text = split(text, room)
		lines = append(lines, indent+c.paint(n.Level, line))
	}
	return lines
}

// split returns as much of a text as there is room for, up to a blank if there is one, and the
// rest.
func split(text string, room int) (line, rest string) {
	if textWidth(text) <= room {
		return text, ""
	}
	line = cut(text, room, "")
	if i := strings.LastIndexByte(line, ' '); i > 0 {
		return line[:i], strings.TrimLeft(text[i:], " ")
	}
	return line, text[len(line):]
}

// eighths are the parts of a block, from an eighth to seven.
var eighths = []string{"▏", "▎", "▍", "▌", "▋", "▊", "▉"}

// bar draws how much is used. What is used shows at least a little, and the bar is full only when
// nothing is left.
func (c canvas) bar(x tableCell, n int) string {
	if !x.bar {
		return strings.Repeat(" ", n)
	}
	parts := 0 // eighths of a character
	switch {
	case x.used >= x.most:
		parts = 8 * n
	case x.used > 0:
		parts = min(8*n-1, max(1, int(float64(8*n)*float64(x.used)/float64(x.most))))
	}
	if !c.blocks {
		full := (parts + 7) / 8
		if x.used < x.most {
			full = min(full, n-1)
		}
		return strings.Repeat("#", full) + strings.Repeat(".", n-full)
	}
	s := strings.Repeat("█", parts/8)
	full := parts / 8
	if parts%8 > 0 {
		s += eighths[parts%8-1]
		full++
	}
	return s + strings.Repeat("░", n-full)
}

// painted returns a line in the colour of a level.
func (c canvas) painted(level, text string) string { return c.paint(level, c.clip(text)) }

// paint colours a text (ECMA-48, SGR): what needs somebody is red, what passes is yellow. Both are
// words too.
func (c canvas) paint(level, text string) string {
	codes := map[string]string{warm: "33", hot: "1;31"}
	if !c.color || level == calm || text == "" {
		return text
	}
	return "\x1b[" + codes[level] + "m" + text + "\x1b[0m"
}

func (c canvas) dim(text string) string {
	if !c.color {
		return text
	}
	return "\x1b[2m" + text + "\x1b[0m"
}

// clip keeps a line of words within the width.
func (c canvas) clip(text string) string { return cut(plainText(text), c.cols, c.ellipsis()) }

func (c canvas) ellipsis() string {
	if c.blocks {
		return "…"
	}
	return "..."
}

// cut shortens a text to so many columns.
func cut(text string, cols int, ellipsis string) string {
	if textWidth(text) <= cols {
		return text
	}
	n := 0
	for i, r := range text {
		if n += runeWidth(r); n > cols-textWidth(ellipsis) {
			if cols < textWidth(ellipsis) {
				return strings.Repeat(".", max(0, cols))
			}
			return text[:i] + ellipsis
		}
	}
	return text
}

// textWidth is how many columns a text takes.
func textWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// runeWidth is how many columns a character takes (Unicode Standard Annex #11).
func runeWidth(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case r >= 0x1100 && slices.Contains([]width.Kind{width.EastAsianWide, width.EastAsianFullwidth}, width.LookupRune(r).Kind()):
		return 2
	}
	return 1
}

// plainText keeps what a foreign answer says from steering the terminal.
func plainText(s string) string { return shownStatus.Line(strings.ReplaceAll(s, "\n", " ")) }
