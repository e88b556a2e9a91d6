package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
)

// The keys of the ConfigMap kube-system/conclave that are about snapshots.
const (
	KeySchedule   = "snapshot.schedule"   // when: "0 3 * * *", "@daily" or "@every 6h", in UTC
	KeyTo         = "snapshot.to"         // s3://BUCKET/PREFIX, or a folder that every master has
	KeyKeep       = "snapshot.keep"       // how many of this cluster's to keep there; 7
	KeyRecipients = "snapshot.recipients" // public keys to encrypt for
	KeyEndpoint   = "snapshot.endpoint"   // of S3; AWS's if empty
	KeyRegion     = "snapshot.region"     // of S3
	KeySecret     = "snapshot.secret"     // the Secret of kube-system with AWS_ACCESS_KEY_ID and the like
)

const (
	defaultKeep   = 7
	defaultSecret = "conclave-snapshot"
)

// Plan is what the configuration asks for.
type Plan struct {
	Schedule         Schedule
	To               string
	Keep             int
	Recipients       []age.Recipient
	Endpoint, Region string
	Secret           string
}

// ParsePlan reads the configuration. wanted is false where it asks for no
// snapshots.
func ParsePlan(data map[string]string) (p Plan, wanted bool, err error) {
	known := []string{KeySchedule, KeyTo, KeyKeep, KeyRecipients, KeyEndpoint, KeyRegion, KeySecret}
	var errs []error
	for key := range data {
		if strings.HasPrefix(key, "snapshot.") && !slices.Contains(known, key) {
			errs = append(errs, fmt.Errorf("there is no setting %s: there are %s", key, strings.Join(known, ", ")))
		}
	}
	text := func(key string) string { return strings.TrimSpace(data[key]) }
	p = Plan{To: text(KeyTo), Keep: defaultKeep, Endpoint: text(KeyEndpoint), Region: text(KeyRegion), Secret: text(KeySecret)}
	if p.Secret == "" {
		p.Secret = defaultSecret
	}
	if text(KeySchedule) == "" && len(errs) == 0 {
		return p, false, nil
	}
	if p.Schedule, err = ParseSchedule(text(KeySchedule)); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", KeySchedule, err))
	}
	if !strings.HasPrefix(p.To, s3Scheme) && !strings.HasPrefix(p.To, "/") {
		errs = append(errs, fmt.Errorf("%s: %q is neither s3://BUCKET/PREFIX nor an absolute folder", KeyTo, p.To))
	}
	if t := text(KeyKeep); t != "" {
		if p.Keep, err = strconv.Atoi(t); err != nil || p.Keep < 1 {
			errs = append(errs, fmt.Errorf("%s: %q is no number from 1", KeyKeep, t))
		}
	}
	if p.Recipients, err = Recipients(data[KeyRecipients]); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", KeyRecipients, err))
	} else if len(p.Recipients) == 0 {
		errs = append(errs, fmt.Errorf("%s: a snapshot holds the cluster's keys, so it needs a recipient: `conclave snapshot key` makes one", KeyRecipients))
	}
	return p, true, errors.Join(errs...)
}

// surplus are the snapshots of a cluster beyond the newest ones to keep.
func surplus(all []Entry, cluster string, keep int) []Entry {
	mine := slices.DeleteFunc(slices.Clone(all), func(e Entry) bool { return !strings.HasPrefix(e.Name, prefix(cluster)) })
	mine = sorted(mine)
	return mine[min(keep, len(mine)):]
}

// Schedule says when: at the minutes that match, or every so often.
type Schedule struct {
	every                           time.Duration
	minute, hour, day, month, wkday uint64 // bits
	anyDay, anyWeekday              bool
}

var schedules = map[string]string{
	"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
}

// ParseSchedule reads five fields as cron does (minute, hour, day of the month,
// month, day of the week), one of cron's short forms, or "@every" and a
// duration.
func ParseSchedule(text string) (s Schedule, err error) {
	if rest, ok := strings.CutPrefix(text, "@every "); ok {
		if s.every, err = time.ParseDuration(strings.TrimSpace(rest)); err != nil || s.every < time.Minute {
			return s, fmt.Errorf("%q: give a duration of a minute or more, such as @every 6h", text)
		}
		return s, nil
	}
	if full, ok := schedules[text]; ok {
		text = full
	}
	fields := strings.Fields(text)
	if len(fields) != 5 {
		return s, fmt.Errorf("%q is no schedule: write five fields as cron does, @daily, or @every 6h", text)
	}
	s.anyDay, s.anyWeekday = fields[2] == "*", fields[4] == "*"
	for i, f := range []struct {
		bits     *uint64
		from, to int
	}{{&s.minute, 0, 59}, {&s.hour, 0, 23}, {&s.day, 1, 31}, {&s.month, 1, 12}, {&s.wkday, 0, 7}} {
		if *f.bits, err = parseField(fields[i], f.from, f.to); err != nil {
			return s, fmt.Errorf("%q: field %d: %w", text, i+1, err)
		}
	}
	s.wkday |= s.wkday >> 7 & 1 // 7 is Sunday too
	if s.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return s, fmt.Errorf("%q: there is no such day", text)
	}
	return s, nil
}

// parseField reads a list of numbers, ranges and steps.
func parseField(text string, from, to int) (set uint64, err error) {
	for _, part := range strings.Split(text, ",") {
		span, stepText, stepped := strings.Cut(part, "/")
		low, high, step := from, to, 1
		if stepped {
			if step, err = strconv.Atoi(stepText); err != nil || step < 1 {
				return 0, fmt.Errorf("%q is no step", stepText)
			}
		}
		if span != "*" {
			lowText, highText, ranged := strings.Cut(span, "-")
			if low, err = strconv.Atoi(lowText); err != nil {
				return 0, fmt.Errorf("%q is no number", lowText)
			}
			switch {
			case ranged:
				if high, err = strconv.Atoi(highText); err != nil {
					return 0, fmt.Errorf("%q is no number", highText)
				}
			case !stepped:
				high = low
			}
		}
		if low < from || high > to || low > high {
			return 0, fmt.Errorf("%q is not within %d-%d", part, from, to)
		}
		for n := low; n <= high; n += step {
			set |= 1 << n
		}
	}
	return set, nil
}

// Next is the first time of the schedule after t, in UTC; zero if there is none
// within five years.
func (s Schedule) Next(t time.Time) time.Time {
	t = t.UTC()
	if s.every > 0 {
		return t.Truncate(s.every).Add(s.every)
	}
	last := t.AddDate(5, 0, 0)
	for t = t.Truncate(time.Minute).Add(time.Minute); t.Before(last); {
		switch {
		case s.month>>int(t.Month())&1 == 0:
			t = time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, time.UTC)
		case !s.onDay(t):
			t = time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, time.UTC)
		case s.hour>>t.Hour()&1 == 0:
			t = t.Truncate(time.Hour).Add(time.Hour)
		case s.minute>>t.Minute()&1 == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

// onDay is cron's rule: where both days are given, one of them is enough.
func (s Schedule) onDay(t time.Time) bool {
	day, wkday := s.day>>t.Day()&1 == 1, s.wkday>>int(t.Weekday())&1 == 1
	if s.anyDay || s.anyWeekday {
		return day && wkday
	}
	return day || wkday
}
