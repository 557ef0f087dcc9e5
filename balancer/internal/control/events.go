package control

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/rota-lb/rota/balancer/internal/membership"
)

// Event is something that has happened to what the control plane knows.
type Event struct {
	Seq  uint64 // counts up by one, from the start of the daemon
	At   time.Time
	Kind string // one of the kinds below
	// Service, Instance and Address say whose, where it is somebody's.
	Service, Instance, Address string
	From, To                   string // states, of an instance
	Text                       string // in words
	Revision                   int64  // of the store, that brought it about; zero when it did not
}

// The kinds of events.
const (
	EventInstance = "instance" // has come, changed its state, or gone
	EventRoutes   = "routes"   // the routes in effect have changed
	EventConfig   = "config"   // the configuration was read anew
	EventRegistry = "registry" // is out of reach, in sync, another one
	EventBrake    = "brake"    // engaged or released
	EventPanic    = "panic"    // likewise
	EventOperator = "operator" // did something through the API
)

// keptEvents is how many events are kept.
const keptEvents = 2048

// Events keeps the latest events. The zero value is ready; it may be used concurrently.
type Events struct {
	mu   sync.Mutex
	ring [keptEvents]Event
	last uint64        // Seq of the latest
	next chan struct{} // closed by the next one; nil while nobody waits
}

// add gives an event its number.
func (e *Events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	ev.Seq = e.last
	e.ring[e.last%keptEvents] = ev
	if e.next != nil {
		close(e.next)
		e.next = nil
	}
}

// Since returns the events after a number, as far as they are kept, and a channel that is closed when there is another. Zero
// is from the beginning; a number of a later one than the latest, which an earlier life of the daemon gave, likewise.
func (e *Events) Since(seq uint64) ([]Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if seq > e.last {
		seq = 0
	}
	first := seq + 1
	if e.last >= keptEvents {
		first = max(first, e.last-keptEvents+1)
	}
	var list []Event
	for n := first; n <= e.last; n++ {
		list = append(list, e.ring[n%keptEvents])
	}
	if e.next == nil {
		e.next = make(chan struct{})
	}
	return list, e.next
}

// Events are the latest events. They may be read from any goroutine.
func (c *Controller) Events() *Events { return &c.events }

// say adds an event about the control plane itself.
func (c *Controller) say(kind, text string) {
	c.events.add(Event{At: time.Now(), Kind: kind, Text: text, Revision: c.fold.Revision()})
}

// ConfigRefused notes that the configuration could not be read anew.
func (c *Controller) ConfigRefused(err error) {
	c.events.add(Event{At: time.Now(), Kind: EventConfig, Text: "not read anew, the old one stays: " + err.Error()})
}

// tell adds what has happened to instances, and logs it as long as that is no flood.
func (c *Controller) tell() {
	list := c.fold.Transitions()
	for _, t := range list {
		c.events.add(Event{
			At: t.At, Kind: EventInstance, Service: t.Service, Instance: t.ID, Address: t.Address,
			From: string(t.From), To: string(t.To), Text: t.Reason, Revision: t.Revision,
		})
	}
	for i, t := range list {
		if c.told++; c.told > mostTold {
			c.untold += len(list) - i
			return
		}
		log := c.Logger.Info
		if t.To == membership.Suspect || t.To == membership.Ejected || t.To == membership.Down {
			log = c.Logger.Warn
		}
		log("instance "+string(t.To), zap.String("service", t.Service), zap.String("instance", t.ID), zap.String("address", t.Address),
			zap.String("was", string(t.From)), zap.String("why", t.Reason), broughtAbout(t.Revision))
	}
}

// broughtAbout is the revision that has brought something about; nothing where none has.
func broughtAbout(revision int64) zap.Field {
	if revision == 0 {
		return zap.Skip()
	}
	return zap.Int64("revision", revision)
}

// mostTold is how many changes a second are logged one by one.
const mostTold = 50

// tellRest logs, every second, how many changes were not logged.
func (c *Controller) tellRest() {
	if c.untold > 0 {
		c.Logger.Info("more instances have changed; see the events of the API", zap.Int("changes", c.untold))
	}
	c.told, c.untold = 0, 0
}
