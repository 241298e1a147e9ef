package address

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/traditionalchinese"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/encoding/unicode/utf32"
)

// A decoder reads text of one character set. What that does not have becomes U+FFFD.
type decoder func(string) string

// decoderOf returns the decoder of the character set that a label names, or nil where the label is
// not known. The names are those of the WHATWG encoding standard, of code pages, and those that
// vendors and old systems have for the same sets.
func decoderOf(label string) decoder {
	label = strings.ToLower(strings.TrimSpace(label))
	name := strings.ReplaceAll(strings.TrimPrefix(label, "x-"), "_", "-")
	switch name {
	case "utf-7", "utf7", "unicode-1-1-utf-7", "csutf7", "csunicode11utf7", "cp65000":
		return fromUTF7
	case "iso-2022-kr", "iso2022-kr", "iso2022kr", "csiso2022kr", "cp50225":
		return func(s string) string { return fromShifts(s, "\x1b$)C", korean.EUCKR) }
	case "iso-2022-cn", "iso2022-cn", "iso2022cn", "iso-2022-cn-ext", "cp50227":
		return func(s string) string { return fromShifts(s, "\x1b$)A", simplifiedchinese.GBK) }
	}
	if e := encodingOf(label, name); e != nil {
		return func(s string) string { return decode(e, s) }
	}
	return nil
}

func encodingOf(label, name string) encoding.Encoding {
	if e := vendors[name]; e != nil {
		return e
	}
	if e := codePages[codePage(name)]; e != nil {
		return e
	}
	for _, l := range []string{label, name, "iso-" + name} { // the last is Java's: 8859_1
		e, err := htmlindex.Get(l)
		if err == nil && e != encoding.Replacement && e != charmap.XUserDefined {
			return e
		}
	}
	return nil
}

// codePage returns the number in a name such as cp850, IBM-850, ms949, windows-1252 and 437, or 0.
func codePage(name string) int {
	name = strings.TrimPrefix(name, "cs")
	for _, maker := range []string{"cp", "ibm", "windows", "win", "ms", "dos", "ccsid", "codepage", ""} {
		if digits, ok := strings.CutPrefix(name, maker); ok {
			n, _ := strconv.Atoi(strings.TrimPrefix(digits, "-"))
			return n
		}
	}
	return 0
}

// codePages are the numbers of IBM and Microsoft. Those of Windows, 1250 to 1258, the WHATWG has.
var codePages = map[int]encoding.Encoding{
	37: charmap.CodePage037, 437: charmap.CodePage437, 813: charmap.ISO8859_7, 819: charmap.Windows1252, 850: charmap.CodePage850,
	852: charmap.CodePage852, 855: charmap.CodePage855, 858: charmap.CodePage858, 860: charmap.CodePage860, 862: charmap.CodePage862,
	863: charmap.CodePage863, 865: charmap.CodePage865, 866: charmap.CodePage866, 874: charmap.Windows874, 878: charmap.KOI8R,
	912: charmap.ISO8859_2, 915: charmap.ISO8859_5, 920: charmap.Windows1254, 923: charmap.ISO8859_15, 932: japanese.ShiftJIS,
	936: simplifiedchinese.GBK, 943: japanese.ShiftJIS, 949: korean.EUCKR, 950: traditionalchinese.Big5, 970: korean.EUCKR,
	1047: charmap.CodePage1047, 1140: charmap.CodePage1140, 1200: utf16LE, 1201: utf16BE, 1208: unicode.UTF8,
	1250: charmap.Windows1250, 1251: charmap.Windows1251, 1252: charmap.Windows1252, 1253: charmap.Windows1253,
	1254: charmap.Windows1254, 1255: charmap.Windows1255, 1256: charmap.Windows1256, 1257: charmap.Windows1257,
	1258: charmap.Windows1258, 1383: simplifiedchinese.GBK, 1386: simplifiedchinese.GBK,
	10000: charmap.Macintosh, 10007: charmap.MacintoshCyrillic, 20127: charmap.Windows1252, 20866: charmap.KOI8R, 20932: japanese.EUCJP,
	20936: simplifiedchinese.GBK, 20949: korean.EUCKR, 21866: charmap.KOI8U, 28591: charmap.Windows1252, 28592: charmap.ISO8859_2,
	28593: charmap.ISO8859_3, 28594: charmap.ISO8859_4, 28595: charmap.ISO8859_5, 28596: charmap.ISO8859_6, 28597: charmap.ISO8859_7,
	28598: charmap.ISO8859_8, 28599: charmap.Windows1254, 28603: charmap.ISO8859_13, 28605: charmap.ISO8859_15,
	50220: japanese.ISO2022JP, 50221: japanese.ISO2022JP, 50222: japanese.ISO2022JP, 51932: japanese.EUCJP, 51936: simplifiedchinese.GBK,
	51949: korean.EUCKR, 52936: simplifiedchinese.HZGB2312, 54936: simplifiedchinese.GB18030, 65001: unicode.UTF8,
}

// RFC 2781 has UTF-16 begin with the higher byte where no mark says otherwise.
var (
	utf16Any = unicode.UTF16(unicode.BigEndian, unicode.UseBOM)
	utf16BE  = unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM)
	utf16LE  = unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM)
)

// vendors are names that the WHATWG does not list, without "x-", and with "-" for each "_".
var vendors = map[string]encoding.Encoding{
	"uhc": korean.EUCKR, "euckr": korean.EUCKR, "unified-hangul": korean.EUCKR, "ks-c-5601": korean.EUCKR, "ksc5601-1987": korean.EUCKR,
	"ks-c-5601-1987": korean.EUCKR, "ksc-5601-1987": korean.EUCKR, "ks-x-1001": korean.EUCKR, "ksx1001": korean.EUCKR, "windows-949-2000": korean.EUCKR,

	"iso2022jp": japanese.ISO2022JP, "iso2022-jp": japanese.ISO2022JP, "iso-2022-jp-1": japanese.ISO2022JP, "iso-2022-jp-2": japanese.ISO2022JP,
	"iso-2022-jp-3": japanese.ISO2022JP, "iso-2022-jp-ms": japanese.ISO2022JP, "jis": japanese.ISO2022JP, "csjisencoding": japanese.ISO2022JP,
	"eucjp": japanese.EUCJP, "eucjp-ms": japanese.EUCJP, "euc-jp-ms": japanese.EUCJP, "eucjp-win": japanese.EUCJP, "ujis": japanese.EUCJP,
	"sjis-win": japanese.ShiftJIS, "shiftjis": japanese.ShiftJIS, "mskanji": japanese.ShiftJIS, "cswindows31j": japanese.ShiftJIS,

	"hz": simplifiedchinese.HZGB2312, "hz-gb-2312": simplifiedchinese.HZGB2312, "hz-gb2312": simplifiedchinese.HZGB2312,
	"euc-cn": simplifiedchinese.GBK, "euccn": simplifiedchinese.GBK, "gb-2312": simplifiedchinese.GBK, "gb2312-80": simplifiedchinese.GBK,
	"gb2312.1980-0": simplifiedchinese.GBK, "cn-gb": simplifiedchinese.GBK, "gb": simplifiedchinese.GBK, "csgbk": simplifiedchinese.GBK,
	"gb-18030": simplifiedchinese.GB18030, "gb18030-2000": simplifiedchinese.GB18030, "csgb18030": simplifiedchinese.GB18030,
	"big-5": traditionalchinese.Big5, "big5hkscs": traditionalchinese.Big5, "big5-eten": traditionalchinese.Big5, "csbig5hkscs": traditionalchinese.Big5,

	"utf-16": utf16Any, "utf16": utf16Any, "csutf16": utf16Any, "utf-16be": utf16BE, "utf16be": utf16BE, "ucs-2be": utf16BE,
	"utf-16le": utf16LE, "utf16le": utf16LE, "ucs-2le": utf16LE, "ucs-2": utf16Any, "ucs2": utf16Any, "iso-10646-ucs-2": utf16Any,
	"utf-32": utf32.UTF32(utf32.BigEndian, utf32.UseBOM), "utf-32be": utf32.UTF32(utf32.BigEndian, utf32.IgnoreBOM),
	"utf-32le": utf32.UTF32(utf32.LittleEndian, utf32.IgnoreBOM), "ucs-4": utf32.UTF32(utf32.BigEndian, utf32.UseBOM),
	"utf-8-mac": unicode.UTF8, "utf8mb4": unicode.UTF8, "csutf8": unicode.UTF8, "iso-10646-utf-8": unicode.UTF8,

	"us-ascii-8bit": charmap.Windows1252, "iso646-us": charmap.Windows1252, "iso-646.irv:1991": charmap.Windows1252, "latin-1": charmap.Windows1252,
	"latin-2": charmap.ISO8859_2, "latin-3": charmap.ISO8859_3, "latin-4": charmap.ISO8859_4, "latin-5": charmap.Windows1254,
	"latin-6": charmap.ISO8859_10, "latin7": charmap.ISO8859_13, "latin8": charmap.ISO8859_14, "latin9": charmap.ISO8859_15,
	"latin-9": charmap.ISO8859_15, "latin0": charmap.ISO8859_15, "latin10": charmap.ISO8859_16, "csiso885915": charmap.ISO8859_15,
	"ibm00858": charmap.CodePage858, "ibm01140": charmap.CodePage1140, "cspc8codepage437": charmap.CodePage437,
	"cspc850multilingual": charmap.CodePage850, "cspcp852": charmap.CodePage852, "csibm855": charmap.CodePage855,
	"tis620": charmap.Windows874, "tis620.2533": charmap.Windows874, "cstis620": charmap.Windows874,
	"koi8u": charmap.KOI8U, "koi8r": charmap.KOI8R, "cp-866": charmap.CodePage866, "macroman": charmap.Macintosh,
	"mac-cyrillic": charmap.MacintoshCyrillic, "maccyrillic": charmap.MacintoshCyrillic,
}

// fromUTF7 decodes RFC 2152: runs of base64 between "+" and "-" are UTF-16.
func fromUTF7(s string) string {
	var b strings.Builder
	for {
		plain, rest, more := strings.Cut(s, "+")
		b.WriteString(strings.Map(asciiOnly, plain))
		if !more {
			return b.String()
		}
		n := 0
		for n < len(rest) && base64Only(rune(rest[n])) >= 0 {
			n++
		}
		raw, err := base64.RawStdEncoding.DecodeString(rest[:n])
		switch {
		case n == 0 && strings.HasPrefix(rest, "-"):
			b.WriteByte('+')
		case n == 0 || err != nil:
			b.WriteRune(utf8.RuneError)
		default:
			b.WriteString(decode(utf16BE, string(raw[:len(raw)&^1]))) // what is left of a byte is padding
		}
		s = strings.TrimPrefix(rest[n:], "-")
	}
}

func asciiOnly(r rune) rune {
	if r < utf8.RuneSelf {
		return r
	}
	return utf8.RuneError
}

// fromShifts decodes ISO-2022-KR (RFC 1557) and what ISO-2022-CN (RFC 1922) has of GB2312: between
// the bytes SO and SI stand those of a double-byte set without their highest bit. Another set that
// an escape sequence calls for is not known.
func fromShifts(s, designation string, e encoding.Encoding) string {
	b := []byte(strings.ReplaceAll(s, designation, ""))
	n, out := 0, false
	for _, c := range b {
		switch {
		case c == 0x0e || c == 0x0f:
			out = c == 0x0e
			continue
		case c == 0x1b:
			return string(utf8.RuneError)
		case out && c > ' ':
			c |= 0x80
		}
		b[n] = c
		n++
	}
	return decode(e, string(b[:n]))
}
