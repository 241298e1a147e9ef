package config

import (
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/sendas/sendas/internal/record"
)

// Record says what is kept of each message, and for how long. Both services keep their half.
type Record struct {
	Off        bool   // "record: off" in place of the keys
	Recipients string `yaml:"recipients"`  // record.Recipients
	Days       int    `yaml:"days"`        // until it is deleted
	Size       Bytes  `yaml:"size"`        // of each of the two files
	Page       bool   `yaml:"page"`        // it can be searched on the status page
	MilterFile string `yaml:"milter_file"` // of the milter's half; absolute
	TokenFile  string `yaml:"token_file"`  // of the token service's; absolute
}

// Bytes is a size, written as 200M or 1G.
type Bytes int64

// minRecord is below what a file is too small for a day.
const minRecord = 10 << 20

// maxRecordDays is ten years: nobody needs more, and who writes more has mistaken the unit.
const maxRecordDays = 3660

// RecordSettings are what the services need of Record.
func (c *Site) RecordSettings() record.Settings {
	r := &c.Record
	return record.Settings{On: !r.Off, Recipients: record.Recipients(r.Recipients), Days: r.Days, Size: int64(r.Size)}
}

// record checks what is kept of each message.
func (k *checker) record() {
	r := &k.c.Record
	switch record.Recipients(r.Recipients) {
	case record.FullRecipients, record.DomainsOnly, record.NoRecipients:
	default:
		k.fail("record.recipients", "%q is not what can be kept of recipients; write full, domain or off", Clip(r.Recipients))
	}
	if r.Days < 1 || r.Days > maxRecordDays {
		k.fail("record.days", "%d is no number of days to keep; write 1 to %d, or record: off", r.Days, maxRecordDays)
	}
	if r.Size < minRecord {
		k.fail("record.size", "a file of that size is too small; write 10M or more, or record: off")
	}
	if r.MilterFile == r.TokenFile {
		k.fail("record.token_file", "both services keep a file of their own; write another name than that of milter_file")
	}
}

// completeRecord puts the files beside what the services keep anyway.
func (c *Site) completeRecord(dir string) {
	beside := func(file *string, folder string) {
		if *file == "" {
			*file = filepath.Join(folder, "record.db")
		}
		*file = under(dir, *file)
	}
	folder := "/var/lib/sendas"
	if s := c.Milter.StoreOf(); s.File() != "" {
		folder = filepath.Dir(s.File())
	}
	beside(&c.Record.MilterFile, folder)
	beside(&c.Record.TokenFile, c.Token.StateDir)
}

// recorded decodes the section, or the word off in its place.
func (d *decoder) recorded(path string, n ast.Node, r *Record) bool {
	s, ok := n.(*ast.StringNode)
	if !ok || colonForgotten(s.Value) != "" {
		return false
	}
	if s.Value != "off" {
		d.fail(path, n, "%q is no way to keep a record; write off, or keys with values such as days: 30", Clip(s.Value))
		return true
	}
	r.Off = true
	return true
}

// bytes reads a size such as 200M.
func (d *decoder) bytes(path string, n ast.Node, p *Bytes) {
	s, ok := d.scalar(path, n)
	if !ok {
		return
	}
	number, unit := s, int64(0)
	for suffix, bytes := range map[string]int64{"k": 1 << 10, "M": 1 << 20, "G": 1 << 30} {
		if cut, found := strings.CutSuffix(s, suffix); found {
			number, unit = cut, bytes
		}
	}
	i, err := strconv.ParseInt(number, 10, 64)
	if err != nil || unit == 0 || i < 0 || i > 1<<40/unit {
		d.fail(path, n, "%q is not a size; write 200M or 1G", Clip(s))
		return
	}
	*p = Bytes(i * unit)
}
