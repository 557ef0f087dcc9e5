package config

import _ "embed"

//go:embed rota.example.yaml
var example []byte

// Example returns a commented configuration file with every key, ready to be edited.
func Example() []byte { return append([]byte(nil), example...) }
