package address

import (
	"encoding/base64"
	"encoding/hex"
	"io"
	"mime"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/traditionalchinese"
)

// toUTF8 decodes text whose character set nobody told: the raw 8-bit bytes that devices write into
// headers, against RFC 5322. The rule, in this order:
//
//   - Valid UTF-8 is UTF-8, and so is UTF-8 with one character cut off (many a device counts bytes).
//   - ISO-2022-JP is known by its escape sequences.
//   - Shift-JIS, EUC-JP, Big5 and GBK (which contains GB2312) need two things: every byte fits, and at least two
//     characters are there that are common in it and whose bytes mean nothing in Europe ([reading]).
//     Half-width katakana needs three or four in a row that make sense as syllables.
//   - Everything else is Windows-1252, which contains ISO-8859-1.
//
// In doubt it is western: a wrong Chinese character hides what it was made of, while "É¨Ãè" does
// not. So these are not recognised: a single character ("3层"), names of rare characters alone, and
// those few whose bytes are all letters in Windows-1252, Windows-1251 or KOI8-R ("中文", the
// half-width "ﾌﾟﾘﾝﾀ"). And some text cannot be told apart, and comes out wrong whatever the rule:
// Cyrillic, Greek and Hebrew as western; EUC-KR, EUC-JP without kana, Big5 without an ASCII byte,
// and now and then Arabic, Thai and Ukrainian capitals as Chinese. Their devices have to learn
// UTF-8.
func toUTF8(s string) string {
	if IsASCII(s) {
		return fromISO2022JP(s)
	}
	if utf8.ValidString(s) {
		return s
	}
	if cutUTF8(s) {
		return strings.ToValidUTF8(s, "")
	}
	if e := guess(s); e != nil {
		return decode(e, s)
	}
	return decode(charmap.Windows1252, s)
}

// decode never fails: what the encoding does not have becomes U+FFFD, which [printable] drops.
func decode(e encoding.Encoding, s string) string {
	t, _ := e.NewDecoder().String(s)
	return t
}

// fromISO2022JP decodes 7-bit text with the escape sequences of RFC 1468. Text that does not return
// to ASCII, as it must, was cut off; decoding it would turn the address behind it into characters.
func fromISO2022JP(s string) string {
	back := max(strings.LastIndex(s, "\x1b(B"), strings.LastIndex(s, "\x1b(J"))
	if away := strings.LastIndex(s, "\x1b$"); away < 0 || back < away {
		return s
	}
	return decode(japanese.ISO2022JP, s)
}

// cutUTF8 reports whether s is UTF-8 but for one character that lacks its end. Two bytes prove
// little ("ﾃｽﾄ" in Shift-JIS looks like it), so there has to be a longer character, or an accented
// letter beside a plain one.
func cutUTF8(s string) bool {
	cut, sure := 0, false
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			if n = cutRune(s[i:]); n == 0 {
				return false
			}
			cut++
		case n > 2:
			sure = true
		case n == 2:
			if !besideLetter(s, i, i+n) {
				return false
			}
			sure = true
		}
		i += n
	}
	return cut == 1 && sure
}

// cutRune returns the length of the character at the beginning of s, if that is UTF-8 without its
// last bytes; else 0.
func cutRune(s string) int {
	n := 1
	for n < len(s) && s[n]&0xc0 == 0x80 {
		n++
	}
	if n < len(s) && s[n] >= 0x80 || utf8.FullRuneInString(s[:n]) {
		return 0
	}
	return n
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// besideLetter reports whether an ASCII letter stands right before or after s[from:to].
func besideLetter(s string, from, to int) bool {
	return from > 0 && isLetter(s[from-1]) || to < len(s) && isLetter(s[to])
}

// guess returns the double-byte encoding that s is in, or nil. s is neither ASCII nor UTF-8.
func guess(s string) encoding.Encoding {
	katakana := readKatakana(s)
	big5 := read(s, big5Char)
	switch {
	case read(s, shiftJISChar).convincing() || katakana == certain:
		return japanese.ShiftJIS
	case read(s, eucJPChar).convincing():
		return japanese.EUCJP
	case big5.convincing() && big5.asciiTrail: // only the rarest characters of GBK have one
		return traditionalchinese.Big5
	case read(s, gbkChar).convincing():
		return simplifiedchinese.GBK
	case katakana == possible:
		return japanese.ShiftJIS
	}
	return nil
}

// A class says what a character means for the guess of an encoding.
type class int

const (
	foreign class = iota // the encoding has no such character
	neutral              // punctuation, signs
	rare
	common
	western // common, but a western text may have its bytes side by side
)

// A reading is what the bytes of a text are in one encoding.
type reading struct {
	fits         bool // none is foreign
	common, rare int
	evidence     int  // common characters that nothing else explains
	asciiTrail   bool // the second byte of some character is ASCII
}

// convincing reports whether the text is in that encoding beyond reasonable doubt.
func (r reading) convincing() bool { return r.fits && r.evidence >= 2 && r.common >= r.rare }

// read reads s in the encoding for which char tells the length and the class of the character, not
// ASCII, that a text begins with.
func read(s string, char func(string) (int, class)) reading {
	r := reading{fits: true}
	for i := 0; i < len(s); {
		if s[i] < 0x80 {
			i++
			continue
		}
		start, n := i, [western + 1]int{} // a run of characters that are not ASCII
		for i < len(s) && s[i] >= 0x80 {
			size, c := char(s[i:])
			if c == foreign {
				return reading{}
			}
			n[c]++
			r.asciiTrail = r.asciiTrail || size == 2 && s[i+1] < 0x80
			i += size
		}
		r.rare += n[rare]
		r.common += n[common] + n[western]
		alone := n[common]+n[western]+n[rare]+n[neutral] == 1
		if n[common] > 0 && !(alone && besideLetter(s, start, i)) && !plainWord(s[start:i]) {
			r.evidence += n[common] + n[western]
		}
	}
	return r
}

// plainWord reports whether a run of bytes could be a word in a European character set: letters
// alone, in upper or in lower case but for the first. In Windows-1252, Windows-1251, KOI8-R and
// ISO-8859-7 letters are 0xc0 to 0xff, the two cases 0x20 apart.
func plainWord(run string) bool {
	for i := range len(run) {
		if run[i] < 0xc0 || i > 1 && run[i]&0x20 != run[1]&0x20 {
			return false
		}
	}
	return true
}

// gbkChar knows GBK. Its common characters are level 1 of GB2312, which has them by frequency.
func gbkChar(s string) (int, class) {
	b, t := pair(s)
	switch {
	case t < 0x40 || t == 0x7f || t == 0xff || b == 0x80 || b == 0xff:
		return 2, foreign
	case t < 0xa1 && b >= 0xa1 && b <= 0xa7, t >= 0xa1 && (b >= 0xaa && b <= 0xaf || b >= 0xf8), b == 0xd7 && t >= 0xfa:
		return 2, foreign // for private use
	case b >= 0xa1 && b <= 0xa9:
		return 2, neutral
	case b >= 0xb0 && b <= 0xd7 && t >= 0xa1:
		return 2, common
	}
	return 2, rare
}

// big5Char knows Big5. Its common characters are level 1.
func big5Char(s string) (int, class) {
	b, t := pair(s)
	switch {
	case t < 0x40 || t >= 0x7f && t <= 0xa0 || t == 0xff || b < 0xa1 || b > 0xf9 || b == 0xc7 || b == 0xc8:
		return 2, foreign
	case b < 0xa4:
		return 2, neutral
	case b > 0xc6:
		return 2, rare
	case b >= 0xc0 || t < 0xa1: // "ÄM", "°C"
		return 2, western
	}
	return 2, common
}

// eucJPChar knows EUC-JP. Only kana counts: the bytes of the others are GB2312 as well.
func eucJPChar(s string) (int, class) {
	b, t := pair(s)
	switch {
	case t < 0xa1 || t == 0xff:
		return 2, foreign
	case b == 0xa4 || b == 0xa5:
		return 2, common
	case b >= 0xa1 && b <= 0xa8 || b >= 0xb0 && b <= 0xf4 || b == 0x8e && t <= 0xdf:
		return 2, neutral
	}
	return 2, foreign
}

// shiftJISChar knows Shift-JIS. Its common characters are full-width kana, letters and digits, and
// level 1 of the kanji.
func shiftJISChar(s string) (int, class) {
	if s[0] >= 0xa1 && s[0] <= 0xdf {
		return 1, neutral // half-width katakana: see readKatakana
	}
	b, t := pair(s)
	switch {
	case t < 0x40 || t == 0x7f || t > 0xfc:
		return 2, foreign
	case b == 0x82 && t >= 0x4f && t <= 0xf1, b == 0x83 && t <= 0x96:
		return 2, common
	case b == 0x88 && t >= 0x9f, b >= 0x89 && b <= 0x97, b == 0x98 && t <= 0x72:
		return 2, kanji(b, t)
	case b == 0x81, b == 0x83 && t <= 0xd6, b == 0x84, b == 0x87:
		return 2, neutral
	case b == 0x98 && t >= 0x9f, b >= 0x99 && b <= 0x9f, b >= 0xe0 && b <= 0xea, b >= 0xed && b <= 0xee, b >= 0xfa && b <= 0xfc:
		return 2, rare
	}
	return 2, foreign
}

// kanji tells from which the bytes of a level 1 kanji may be western: a letter after typographic
// quotes, a dash or a bullet, or after Š, Œ or Ž ("‘n’Roll", "vis–à–vis", "ŽIŽEK" in Windows-1252).
func kanji(b, t byte) class {
	sign := b == 0x8a || b == 0x8c || b == 0x8e || b >= 0x91 && b <= 0x97
	if sign && (isLetter(t) || t >= 0xc0) {
		return western
	}
	return common
}

// pair returns the first two bytes of s; the second is 0 where there is none.
func pair(s string) (b, t byte) {
	if len(s) < 2 {
		return s[0], 0
	}
	return s[0], s[1]
}

// A verdict says how likely a text is what it is taken for.
type verdict int

const (
	unlikely verdict = iota
	possible
	certain
)

// readKatakana reports whether s has half-width katakana of Shift-JIS in it. Those are single
// bytes, and so little to go by: it has to be a run of at least four, or three with a sign of
// Windows-1252 in the middle, and follow the rules of Japanese syllables. It is certain where some
// character obeys a rule that Chinese does not know.
func readKatakana(s string) verdict {
	found := unlikely
	for i := 0; i < len(s); {
		start := i
		for i < len(s) && s[i] >= 0xa6 && s[i] <= 0xdf {
			i++
		}
		run := s[start:i]
		v, ok := syllables(run)
		if !ok {
			return unlikely
		}
		if len(run) >= 4 && !plainWord(run) || len(run) == 3 && run[1] < 0xc0 {
			found = max(found, v)
		}
		if i == len(s) {
			break
		}
		size, c := 1, neutral
		if s[i] >= 0x80 {
			size, c = shiftJISChar(s[i:])
		}
		if c == foreign || c == rare {
			return unlikely
		}
		i += size
	}
	return found
}

// syllables checks what may follow what in half-width katakana (JIS X 0201): voice marks and small
// letters stand after certain letters only, and a long vowel never stands first.
func syllables(run string) (v verdict, ok bool) {
	v = possible
	for i := range len(run) {
		after := follows(run[i])
		if after == "" {
			continue
		}
		j := i - 1
		if j > 0 && run[i] < voiceMark && run[j] >= voiceMark { // "ｼﾞｬ"
			j--
		}
		if j < 0 || after != anyLetter && strings.IndexByte(after, run[j]) < 0 {
			return unlikely, false
		}
		if run[i] != longVowel || i%2 == 1 { // "平安" in GB2312 is "ﾆｽｰｲ"
			v = certain
		}
	}
	return v, true
}

// Half-width katakana that syllables asks for.
const (
	longVowel     = 0xb0
	voiceMark     = 0xde
	halfVoiceMark = 0xdf
	anyLetter     = "*"
)

// follows returns the letters after which c may stand, or "" where it may stand anywhere.
func follows(c byte) string {
	const ha, katata = "\xca\xcb\xcc\xcd\xce", "\xb3\xb6\xb7\xb8\xb9\xba\xbb\xbc\xbd\xbe\xbf\xc0\xc1\xc2\xc3\xc4"
	switch {
	case c == voiceMark: // ｳﾞ ｶﾞ … ﾄﾞ ﾊﾞ … ﾎﾞ
		return katata + ha
	case c == halfVoiceMark: // ﾊﾟ … ﾎﾟ
		return ha
	case c >= 0xac && c <= 0xae: // ｬ ｭ ｮ after ｷ ｼ ﾁ ﾆ ﾋ ﾐ ﾘ
		return "\xb7\xbc\xc1\xc6\xcb\xd0\xd8"
	case c >= 0xa7 && c <= 0xab: // ｧ to ｫ after ｳ ｼ ﾁ ﾂ ﾃ ﾄ ﾌ
		return "\xb3\xbc\xc1\xc2\xc3\xc4\xcc"
	case c == 0xaf || c == longVowel: // ｯ ｰ
		return anyLetter
	}
	return ""
}

// WordDecoder is the strict decoder of encoded words, for readers of the standard library. It knows
// the labels that [DecodeName] knows; of any other it shows what is not ASCII as U+FFFD.
var WordDecoder = mime.WordDecoder{CharsetReader: func(label string, in io.Reader) (io.Reader, error) {
	text, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	d := decoderOf(label)
	if d == nil {
		d = func(s string) string { return strings.Map(asciiOnly, s) }
	}
	return strings.NewReader(d(string(text))), nil
}}

// A mimeWord is an encoded word of RFC 2047, section 2, as devices write it.
type mimeWord struct {
	charset string // without the language of RFC 2231, section 5
	base64  bool   // else the "Q" encoding
	text    string
	raw     string // the whole, as it was written
	size    int    // of the whole, in bytes
	closed  bool   // by "?="
}

// cutWord reads the encoded word at the beginning of s. One that is not closed ends at the next
// blank or encoded word.
func cutWord(s string) (w mimeWord, ok bool) {
	head, ok := cutWordHead(s, &w)
	if !ok {
		return w, false
	}
	body := s[head:]
	end, next := strings.Index(body, "?="), nextWord(body)
	if end >= 0 && (next < 0 || end < next) {
		w.text, w.size, w.closed = body[:end], head+end+2, true
		return w, true
	}
	end = strings.IndexByte(body, ' ')
	if end < 0 || next >= 0 && next < end {
		end = next
	}
	if end < 0 {
		end = len(body)
	}
	w.text, w.size = strings.TrimSuffix(body[:end], "?"), head+end
	return w, true
}

// cutWordHead reads "=?charset?b?" and returns its length.
func cutWordHead(s string, w *mimeWord) (int, bool) {
	if !strings.HasPrefix(s, "=?") {
		return 0, false
	}
	n := strings.IndexByte(s[2:min(len(s), 60)], '?') + 2
	if n < 2 || len(s) < n+3 || s[n+2] != '?' || strings.ContainsAny(s[2:n], ` "<>()@,;:=`) {
		return 0, false
	}
	w.charset, _, _ = strings.Cut(s[2:n], "*")
	w.base64 = s[n+1]|0x20 == 'b'
	return n + 3, w.base64 || s[n+1]|0x20 == 'q'
}

// nextWord returns where the next encoded word begins in s, or -1.
func nextWord(s string) int {
	for i := 0; ; i += 2 {
		j := strings.Index(s[i:], "=?")
		if j < 0 {
			return -1
		}
		i += j
		if _, ok := cutWordHead(s[i:], new(mimeWord)); ok {
			return i
		}
	}
}

// decodeWords decodes all encoded words in s, wherever they stand. Words of one character set that
// follow each other are decoded together: their writer may have broken them inside a character.
// What cannot be decoded stays as it was written, as a word of its own ([isOpaque]).
func decodeWords(s string) string {
	var (
		b   wordBuilder
		run []mimeWord // of one character set
	)
	for {
		i := nextWord(s)
		if i < 0 {
			break
		}
		w, _ := cutWord(s[i:])
		w.raw = s[i : i+w.size]
		if gap := s[:i]; len(run) == 0 || strings.TrimSpace(gap) != "" {
			b.decode(run)
			b.text(gap) // blanks between two words are none of the text (RFC 2047, section 6.2)
			run = run[:0]
		} else if !strings.EqualFold(run[0].charset, w.charset) {
			b.decode(run)
			run = run[:0]
		}
		run = append(run, w)
		s = s[i+w.size:]
	}
	b.decode(run)
	b.text(s)
	return b.String()
}

// A wordBuilder collects decoded text, and words that nobody could decode with blanks around them.
type wordBuilder struct {
	strings.Builder
	opaque bool // a word was the last
}

// text appends text.
func (b *wordBuilder) text(s string) {
	if s == "" {
		return
	}
	if b.opaque && s[0] != ' ' {
		b.WriteByte(' ')
	}
	b.WriteString(s)
	b.opaque = false
}

// word appends an encoded word as it was written.
func (b *wordBuilder) word(raw string) {
	if n := b.Len(); n > 0 && b.String()[n-1] != ' ' {
		b.WriteByte(' ')
	}
	b.WriteString(raw)
	b.opaque = true
}

// decode appends what the words of one character set stand for, together or else each for itself.
func (b *wordBuilder) decode(run []mimeWord) {
	var all []byte
	for i := range run {
		all = run[i].appendBytes(all)
	}
	if len(run) == 0 {
		return
	}
	text, ok := fromCharset(run[0].charset, string(all))
	switch {
	case ok:
		b.text(text)
	case len(run) > 1:
		for i := range run {
			b.decode(run[i : i+1])
		}
	default:
		b.word(run[0].raw)
	}
}

// appendBytes appends the bytes that the word stands for. It ignores what it cannot decode.
func (w *mimeWord) appendBytes(b []byte) []byte {
	if !w.base64 {
		return appendQ(b, w.text)
	}
	for part := range strings.SplitSeq(w.text, "=") {
		part = strings.Map(base64Only, part)
		if len(part)%4 == 1 { // cut off within a byte
			part = part[:len(part)-1]
		}
		b, _ = base64.RawStdEncoding.AppendDecode(b, []byte(part))
	}
	return b
}

func base64Only(r rune) rune {
	if r < 0x80 && (isLetter(byte(r)) || '0' <= r && r <= '9' || r == '+' || r == '/') {
		return r
	}
	return -1
}

// appendQ decodes the "Q" encoding (RFC 2047, section 4.2). A "=" without two digits stands for
// itself.
func appendQ(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '_' {
			c = ' '
		}
		if c == '=' && i+2 < len(s) {
			var v [1]byte
			if _, err := hex.Decode(v[:], []byte(s[i+1:i+3])); err == nil {
				c = v[0]
				i += 2
			}
		}
		b = append(b, c)
	}
	return b
}

// fromCharset decodes text with a label, or says that it cannot: the label is not known, or the
// character set that it names does not have these bytes. The label decides, wrong or not, as it
// does in mail programs; bytes are guessed at only where the label is empty. A character that was
// cut off at the end is no obstacle.
func fromCharset(label, text string) (string, bool) {
	if label == "" {
		return toUTF8(text), true
	}
	d := decoderOf(label)
	if d == nil {
		return "", text == ""
	}
	t := d(text)
	if isCut(d, text, t) {
		t = strings.TrimRight(t, string(utf8.RuneError))
	}
	return t, !strings.ContainsRune(t, utf8.RuneError)
}

// isCut reports whether a text, which reads as t, lacks but the end of its last character.
func isCut(d decoder, text, t string) bool {
	if !strings.HasSuffix(t, string(utf8.RuneError)) {
		return false
	}
	for _, first := range []string{"\x80", "\xa1"} {
		for n := range utf8.UTFMax - 1 {
			if !strings.ContainsRune(d(text+first+strings.Repeat("\xa1", n)), utf8.RuneError) {
				return true
			}
		}
	}
	return false
}

// isOpaque reports whether a word of a name is an encoded word that nobody here can decode, and
// that may leave as it is: strictly written, and without anything that a mail program which can
// decode it could show as an address.
func isOpaque(s string) bool {
	w, ok := cutWord(s)
	if !ok || w.size != len(s) || !w.strict(s) {
		return false
	}
	raw := string(w.appendBytes(nil))
	if _, ok := fromCharset(w.charset, raw); ok || !isHarmless(raw) {
		return false
	}
	if d := decoderOf(w.charset); d != nil {
		return !strings.ContainsAny(d(raw), ats)
	}
	return !isShifty(w.charset)
}

// isHarmless reports whether bytes have neither an @ nor anything that could switch to another set.
func isHarmless(raw string) bool {
	return strings.IndexFunc(raw, func(r rune) bool { return r < ' ' || r == '@' || r == 0x7f }) < 0
}

// isShifty reports whether a label may name a set in which the bytes of ASCII are other characters:
// one of EBCDIC, or one with escapes. Of code pages, those of DOS are between 700 and 900.
func isShifty(label string) bool {
	label = strings.ToLower(label)
	for _, s := range []string{"ebcdic", "2022", "utf", "ucs", "unicode", "user-defined", "hz"} {
		if strings.Contains(label, s) {
			return true
		}
	}
	switch n := codePage(strings.ReplaceAll(strings.TrimPrefix(label, "x-"), "_", "-")); n {
	case 0, 1006, 1124, 1125, 1129, 1131, 1133, 1161, 1361:
		return false
	case 838, 870, 871, 875, 880:
		return true
	default:
		return n < 700 || n >= 900
	}
}

// strict reports whether a word, as it stands, is what RFC 2047, section 5, allows in a phrase.
func (w *mimeWord) strict(raw string) bool {
	if !w.closed || len(raw) > maxWord || w.charset == "" || w.text == "" || !isAtoms(raw) || strings.IndexByte(raw, ' ') >= 0 {
		return false
	}
	if !w.base64 {
		return strictQ(w.text)
	}
	_, err := base64.StdEncoding.DecodeString(w.text)
	return err == nil
}

// strictQ reports whether the "Q" encoding is as it has to be in a phrase (RFC 2047, section 5).
func strictQ(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c == '=' {
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return false
			}
			i += 2
		} else if !isLetter(c) && (c < '0' || c > '9') && strings.IndexByte("!*+-/_", c) < 0 {
			return false
		}
	}
	return true
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' }
