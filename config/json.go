package config

import (
	"encoding/json"
	"time"
)

// MarshalJSON writes the timeout as a string such as "15s", which [ParseRoute] reads back.
func (r Route) MarshalJSON() ([]byte, error) {
	type plain Route // without this method
	out := struct {
		plain
		Timeout string `json:"timeout,omitempty"`
	}{plain: plain(r)}
	if r.Timeout != 0 {
		out.Timeout = shortDuration(r.Timeout)
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes. Unlike [ParseRoute] it checks nothing.
func (r *Route) UnmarshalJSON(data []byte) error {
	type plain Route
	in := struct {
		*plain
		Timeout string `json:"timeout"`
	}{plain: (*plain)(r)}
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	if in.Timeout == "" {
		return nil
	}
	d, err := time.ParseDuration(in.Timeout)
	r.Timeout = d
	return err
}
