package address

import (
	"encoding/base64"
	"strings"
	"testing"
)

// TestLabels reads names with the labels that devices, vendors and old systems write. The bytes are
// those of another implementation, Python's.
func TestLabels(t *testing.T) {
	known := map[string]bool{}
	for _, tc := range []struct{ labels, raw, want string }{
		{"cp949 CP949 x-cp949 ms949 MS-949 windows-949 x-windows-949 uhc UHC ks_c_5601-1987 ks_c_5601 ksc5601 KSC_5601 ks_c_5601-1989 ks_x_1001 euc-kr euckr EUC_KR x-euc-kr korean iso-ir-149 cp51949", "\xbd\xba\xc4\xb3\xb3\xca", "스캐너"},
		{"cp949 uhc windows-949 ks_c_5601-1987", "\x8cc\xb9\xe6\xb0\xa2\xc7\xcf", "똠방각하"},
		{"iso-2022-kr ISO2022KR csISO2022KR cp50225", "\x1b$)C\x0e=:D33J\x0f 3", "스캐너 3"},
		{"iso-2022-jp ISO2022JP iso-2022-jp-1 iso-2022-jp-2 iso-2022-jp-ms csISO2022JP cp50220 cp50221 x-windows-50221", "\x1b$BJ#9g5!\x1b(B 3", "複合機 3"},
		{"shift_jis Shift-JIS sjis x-sjis SJIS-win cp932 CP-932 ms932 windows-31j ms_kanji IBM-943", "\x95\xa1\x8d\x87\x8b@\x87@", "複合機①"},
		{"euc-jp eucJP x-euc-jp EUC-JP-MS eucJP-win ujis cp51932", "\xca\xa3\xb9\xe7\xb5\xa1", "複合機"},
		{"hz-gb-2312 hz HZ-GB2312 x-cp52936", "~{I(ChRG~} 3", "扫描仪 3"},
		{"gb2312 GB_2312-80 gb-2312 euc-cn EUCCN x-euc-cn gbk x-gbk cp936 ms936 windows-936 chinese gb18030 GB-18030 cp54936", "\xc9\xa8\xc3\xe8\xd2\xc7", "扫描仪"},
		{"big5 Big-5 big5-hkscs BIG5HKSCS cn-big5 x-x-big5 cp950 ms950 windows-950", "\xa6L\xaa\xed\xbe\xf7", "印表機"},
		{"cp437 IBM437 437 csPC8CodePage437 dos-437", "B\x81ro", "Büro"},
		{"cp850 IBM850 ibm-850 x-cp850 csPC850Multilingual", "Gr\x94\xe1e", "Größe"},
		{"cp852 IBM852 csPCp852", "\xe9\x9ft\xa0rna", "Účtárna"},
		{"cp855 IBM855", "\xe4\xc6\xa0\xd4\xa8\xe1", "Сканер"},
		{"cp858 IBM00858 x-ibm858", "Kasse \xd5", "Kasse €"},
		{"cp860 ibm860", "S\x84o Jo\x84o", "São João"},
		{"cp862 ibm862", "\x91\x85\x98\x97", "סורק"},
		{"cp863 ibm863", "\x90tage", "Étage"},
		{"cp865 ibm865", "Kj\x9bkken", "Kjøkken"},
		{"cp866 IBM866 cp-866 x-cp866", "\x91\xaa\xa0\xad\xa5\xe0", "Сканер"},
		{"cp037 IBM037", "\xe2\x83\x81\x95\x95\x85\x99@\xf3", "Scanner 3"},
		{"cp1140 IBM01140", "\xe2\x83\x81\x95\x95\x85\x99@\xf3", "Scanner 3"},
		{"koi8-r KOI8R koi cp20866", "\xf3\xcb\xc1\xce\xc5\xd2", "Сканер"},
		{"koi8-u koi8u cp21866", "\xb7\xd6\xc1\xcb", "Їжак"},
		{"windows-1250 cp1250 x-cp1250 win-1250", "\xda\xe8t\xe1rna", "Účtárna"},
		{"windows-1251 cp1251 WIN-1251 win1251", "\xd1\xea\xe0\xed\xe5\xf0", "Сканер"},
		{"windows-1252 cp1252 ms1252 us-ascii iso-8859-1 iso8859-1 ISO_8859_1 8859_1 latin1 latin-1 l1 cp819 cp28591", "B\xfcro", "Büro"},
		{"windows-1253 cp1253", "\xd3\xe1\xf1\xf9\xf4\xde\xf2", "Σαρωτής"},
		{"windows-1254 cp1254 iso-8859-9 latin5 latin-5", "Yaz\xfdc\xfd", "Yazıcı"},
		{"windows-1255 cp1255", "\xf1\xe5\xf8\xf7", "סורק"},
		{"windows-1256 cp1256", "\xe3\xc7\xd3\xcd", "ماسح"},
		{"windows-1257 cp1257", "Skeneris \xfe", "Skeneris ž"},
		{"windows-1258 cp1258", "M\xe1y", "Máy"},
		{"windows-874 cp874 tis-620 TIS620 iso-8859-11 x-windows-874", "\xca\xe1\xa1\xb9", "สแกน"},
		{"iso-8859-2 latin2 latin-2 cp912 8859_2 csISOLatin2", "\xda\xe8t\xe1rna", "Účtárna"},
		{"iso-8859-3 latin3", "\xd8ardeno", "Ĝardeno"},
		{"iso-8859-4 latin4", "Skeneris \xbe", "Skeneris ž"},
		{"iso-8859-5 cyrillic cp915", "\xc1\xda\xd0\xdd\xd5\xe0", "Сканер"},
		{"iso-8859-6 arabic", "\xe5\xc7\xd3\xcd", "ماسح"},
		{"iso-8859-7 greek cp813 sun_eu_greek", "\xd3\xe1\xf1\xf9\xf4\xde\xf2", "Σαρωτής"},
		{"iso-8859-8 iso-8859-8-i hebrew logical", "\xf1\xe5\xf8\xf7", "סורק"},
		{"iso-8859-10 latin6", "\xde\xf3r\xf0ur", "Þórður"},
		{"iso-8859-13 latin7", "Skeneris \xfe", "Skeneris ž"},
		{"iso-8859-14 latin8", "T\xf0r", "Tŵr"},
		{"iso-8859-15 latin9 latin-9 latin0 cp923 csISO885915", "Kasse \xa4", "Kasse €"},
		{"iso-8859-16 latin10", "\xaatefan", "Ștefan"},
		{"macintosh x-mac-roman MacRoman cp10000", "B\x9fro", "Büro"},
		{"x-mac-cyrillic", "\x91\xea\xe0\xed\xe5\xf0", "Сканер"},
		{"utf-8 UTF8 utf8mb4 cp65001 csUTF8 unicode-1-1-utf-8", "B\xc3\xbcro \xe6\x89\xab\xe6\x8f\x8f\xe4\xbb\xaa", "Büro 扫描仪"},
		{"utf-7 UTF7 unicode-1-1-utf-7 csUnicode11UTF7 x-unicode-1-1-utf-7", "B+APw-ro +- +Ymtjz07q-", "Büro + 扫描仪"},
		{"utf-16 utf16 utf-16be cp1201 iso-10646-ucs-2", "\x00B\x00\xfc\x00r\x00o\x00 bkc\xcfN\xea", "Büro 扫描仪"},
		{"utf-16 csUTF16", "\xff\xfeB\x00\xfc\x00r\x00o\x00 \x00kb\xcfc\xeaN", "Büro 扫描仪"},
		{"utf-16le UTF16LE cp1200", "B\x00\xfc\x00r\x00o\x00 \x00kb\xcfc\xeaN", "Büro 扫描仪"},
		{"utf-32 utf-32be ucs-4", "\x00\x00\x00B\x00\x00\x00\xfc\x00\x00\x00r\x00\x00\x00o", "Büro"},
	} {
		for label := range strings.FieldsSeq(tc.labels) {
			known[strings.ToLower(label)] = true
			word := "=?" + label + "?b?" + base64.StdEncoding.EncodeToString([]byte(tc.raw)) + "?="
			if got := DecodeName(word); got != tc.want {
				t.Errorf("%s: %q is read as %q, want %q", label, tc.raw, got, tc.want)
			}
			if label == "us-ascii" {
				continue // the standard library does not ask us
			}
			if got, err := WordDecoder.Decode(word); err != nil || strings.TrimPrefix(got, "\ufeff") != tc.want {
				t.Errorf("%s: %q is %q to the strict decoder, want %q: %v", label, tc.raw, got, tc.want, err)
			}
		}
	}
	if len(known) < 90 {
		t.Errorf("%d labels, want at least 90", len(known))
	}
}

// TestUnknownLabels keeps what nobody here can decode as it was written, whatever its bytes could
// be.
func TestUnknownLabels(t *testing.T) {
	for _, label := range []string{
		"x-unknown", "unknown-8bit", "8bit", "ansi", "default", "binary", "x-mfp-900", "viscii", "tcvn", "armscii-8", "georgian-ps", "tscii",
		"hp-roman8", "roman8", "euc-tw", "johab", "cp1361", "cp737", "cp775", "ibm857", "cp861", "cp864", "cp869", "cp1125", "iso-8859-12",
		"x-mac-ce", "x-user-defined", "replacement",
	} {
		for _, raw := range []string{"B\xfcro", "B\xc3\xbcro", "\xbd\xba\xc4\xb3\xb3\xca", "\xc9\xa8\xc3\xe8\xd2\xc7", "\x83\x58\x83\x4c\x83\x83", "Scanner"} {
			word := "=?" + label + "?B?" + base64.StdEncoding.EncodeToString([]byte(raw)) + "?="
			want := word
			if label == "x-user-defined" {
				want = disarm(word, func(string) bool { return false })
			}
			if got := SafeName(DecodeName(word), scan); got != want {
				t.Errorf("%q in %s is read as %q, want %q", raw, label, got, want)
			}
		}
	}
}
