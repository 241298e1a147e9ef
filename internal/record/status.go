package record

import (
	"errors"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Status says how one half of the record is kept. Its JSON keys are stable. Moments are in UTC; null
// is "none" or "not known".
type Status struct {
	On         bool       `json:"on"`         // false: the configuration says that nothing is kept
	Working    bool       `json:"working"`    // what comes can be written
	Error      string     `json:"error"`      // why it can not
	Hint       string     `json:"hint"`       // what to do then
	DiskFull   bool       `json:"disk_full"`  // that is for want of room
	Since      *time.Time `json:"since"`      // when that began, or when it ended
	Lost       uint64     `json:"lost"`       // what could not be kept since the start
	Entries    int64      `json:"entries"`    // in the file, as of a minute ago
	Oldest     *time.Time `json:"oldest"`     // of these
	Bytes      int64      `json:"bytes"`      // of the file
	MaxBytes   int64      `json:"max_bytes"`  // from which on the oldest go
	Days       int        `json:"days"`       // after which they go
	Recipients Recipients `json:"recipients"` // what is kept of them
}

// errHangs is the error of a disk that does not answer.
var errHangs = errors.New("the disk does not answer")

// failing returns why nothing can be written now.
func (k *Keeper) failing(now time.Time) error {
	k.mu.Lock()
	err := k.state.err
	k.mu.Unlock()
	if since := k.writing.Load(); err == nil && since > 0 && now.Sub(time.Unix(0, since)) > hangs {
		return errHangs
	}
	return err
}

// Status describes the record; nil of a nil Keeper.
func (k *Keeper) Status() *Status {
	if k == nil {
		return nil
	}
	set := k.settings.Load()
	s := &Status{On: set.On, Lost: k.lost.Load(), MaxBytes: set.Size, Days: set.Days, Recipients: set.Recipients}
	if err := k.failing(time.Now()); err != nil {
		s.Error, s.Hint = err.Error(), k.hint()
		s.DiskFull = errors.Is(err, errSpare) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	}
	s.Working = s.On && s.Error == ""
	k.mu.Lock()
	defer k.mu.Unlock()
	s.Entries, s.Bytes = k.state.rows, k.state.bytes
	s.Oldest, s.Since = moments(k.state.oldest), moments(k.state.since)
	return s
}

// moments returns a moment for JSON.
func moments(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Second)
	return &t
}

// The series of the record. Where it is switched off there is none but that of what was lost.
var (
	workingDesc = prometheus.NewDesc("sendas_record_working", "1 if what comes can be written to the record, else 0; missing where it is off.", nil, nil)
	lostDesc    = prometheus.NewDesc("sendas_record_lost_total", "Messages, or attempts, that could not be recorded.", nil, nil)
	bytesDesc   = prometheus.NewDesc("sendas_record_bytes", "Bytes of the record's file that are in use.", nil, nil)
	oldestDesc  = prometheus.NewDesc("sendas_record_oldest_timestamp_seconds", "When the oldest message, or attempt, of the record was.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (k *Keeper) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{workingDesc, lostDesc, bytesDesc, oldestDesc} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (k *Keeper) Collect(ch chan<- prometheus.Metric) {
	s := k.Status()
	ch <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(s.Lost))
	if !s.On {
		return
	}
	working := 0.0
	if s.Working {
		working = 1
	}
	ch <- prometheus.MustNewConstMetric(workingDesc, prometheus.GaugeValue, working)
	ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.GaugeValue, float64(s.Bytes))
	if s.Oldest != nil {
		ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, float64(s.Oldest.Unix()))
	}
}
