package config

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// hidden stands for a secret.
const hidden = "(hidden)"

// secretName is what headers are called that carry secrets.
var secretName = regexp.MustCompile(`(?i)auth|cookie|token|secret|password|api-?key|signature|credential`)

// YAML writes the configuration as a file would say it: what is set, defaults included, in the order of the types. Secrets are
// hidden: fields tagged secret, and the values of headers whose names sound like one.
func (c *Config) YAML() []byte {
	var out strings.Builder
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(nodeOf(reflect.ValueOf(*c), false)); err != nil {
		panic("config: " + err.Error()) // the nodes are scalars, lists and mappings
	}
	enc.Close()
	return []byte(out.String())
}

// nodeOf is a value without what is zero within it. In a map of headers, those with secret names are hidden.
func nodeOf(v reflect.Value, headers bool) *yaml.Node {
	node := &yaml.Node{}
	add := func(key string, value *yaml.Node) {
		node.Content = append(node.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
	}
	switch {
	case v.Type() == durationType:
		node.Kind, node.Value = yaml.ScalarNode, shortDuration(time.Duration(v.Int()))
	case v.Kind() == reflect.Pointer:
		return nodeOf(v.Elem(), false)
	case v.Kind() == reflect.Struct:
		node.Kind = yaml.MappingNode
		for _, f := range fieldsOf(v.Type()) {
			x := v.FieldByIndex(f.index)
			switch {
			case x.IsZero():
			case v.Type().FieldByIndex(f.index).Tag.Get("secret") != "":
				add(f.key, scalar(hidden))
			default:
				add(f.key, nodeOf(x, f.key == "headers" || v.Type() == reflect.TypeFor[HeaderEdit]()))
			}
		}
	case v.Kind() == reflect.Map:
		node.Kind = yaml.MappingNode
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			if headers && secretName.MatchString(k.String()) {
				add(k.String(), scalar(hidden))
				continue
			}
			add(k.String(), nodeOf(v.MapIndex(k), false))
		}
	case v.Kind() == reflect.Slice:
		node.Kind = yaml.SequenceNode
		for i := range v.Len() {
			node.Content = append(node.Content, nodeOf(v.Index(i), false))
		}
	default:
		if err := node.Encode(v.Interface()); err != nil {
			panic("config: " + err.Error())
		}
	}
	return node
}

func scalar(text string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(text)
	return n
}
