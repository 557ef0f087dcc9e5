package admin

import (
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
	since, err := number(r.URL.Query().Get("since"), r.Header.Get("Last-Event-ID"))
	if err != nil {
		problem(w, http.StatusBadRequest, "since: write the seq of an event")
		return
	}
	all := a.Control.Events()
	list, next := all.Since(since)
	if !strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		out := make([]Event, 0, len(list))
		for _, e := range list {
			out = append(out, Event(e))
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
			if err := send(w, e); err != nil {
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

func send(w http.ResponseWriter, e control.Event) error {
	text, err := json.Marshal(Event(e))
	if err == nil {
		_, err = fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.Seq, text)
	}
	return err
}

// number is the first of the texts that is one; zero if all are empty.
func number(texts ...string) (uint64, error) {
	for _, t := range texts {
		if t != "" {
			return strconv.ParseUint(t, 10, 64)
		}
	}
	return 0, nil
}
