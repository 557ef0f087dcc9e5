package admin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rota-lb/rota/balancer/internal/control"
)

// Event is one of /api/v1/events: something that has happened to what the daemon knows.
type Event struct {
	// ID names it among the events of all lives of the daemon; Seq counts those of this one.
	ID       string    `json:"id"`
	Seq      uint64    `json:"seq"`
	At       time.Time `json:"at"`
	Kind     string    `json:"kind"`
	Service  string    `json:"service,omitempty"`
	Instance string    `json:"instance,omitempty"`
	Address  string    `json:"address,omitempty"`
	From     string    `json:"from,omitempty"`
	To       string    `json:"to,omitempty"`
	Text     string    `json:"text"`
	Revision int64     `json:"revision,omitempty"`
}

// keepAlive is how often a stream without events says that it is there.
const keepAlive = 15 * time.Second

// events lists the latest events after "since", or Last-Event-ID; to who accepts text/event-stream it goes on telling them as
// they come.
func (a *API) events(w http.ResponseWriter, r *http.Request) {
	since, err := a.after(cmp.Or(r.URL.Query().Get("since"), r.Header.Get("Last-Event-ID")))
	if err != nil {
		problem(w, http.StatusBadRequest, "since: write the id of an event")
		return
	}
	all := a.Control.Events()
	list, next := all.Since(since)
	if !strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		out := make([]Event, 0, len(list))
		for _, e := range list {
			out = append(out, a.event(e))
		}
		reply(w, r, http.StatusOK, out)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		for _, e := range list {
			if err := send(w, a.event(e)); err != nil {
				return
			}
			since = e.Seq
		}
		if flush.Flush() != nil {
			return
		}
		select {
		case <-next:
		case <-tick.C:
			if _, err := fmt.Fprint(w, ":\n\n"); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-a.Ended:
			return
		}
		list, next = all.Since(since)
	}
}

func send(w http.ResponseWriter, e Event) error {
	text, err := json.Marshal(e)
	if err == nil {
		_, err = fmt.Fprintf(w, "id: %s\ndata: %s\n\n", e.ID, text)
	}
	return err
}

func (a *API) event(e control.Event) Event {
	return Event{
		ID: a.life() + "-" + strconv.FormatUint(e.Seq, 10), Seq: e.Seq, At: e.At, Kind: e.Kind, Service: e.Service, Instance: e.Instance, Address: e.Address,
		From: e.From, To: e.To, Text: e.Text, Revision: e.Revision,
	}
}

// life tells the events of this life of the daemon from those of others.
func (a *API) life() string { return strconv.FormatInt(a.Started.UnixNano(), 36) }

// after is the seq that an id stands for. Nothing, and an id of another life, stand for the beginning; a seq alone is taken for one
// of this life.
func (a *API) after(id string) (uint64, error) {
	if id == "" {
		return 0, nil
	}
	life, seq, ok := strings.Cut(id, "-")
	switch {
	case !ok:
		seq = id
	case life != a.life():
		return 0, nil
	}
	return strconv.ParseUint(seq, 10, 64)
}
