package rest

import "fmt"

const (
	// partsMax bounds objects, members and elements of a request outside the arrays of
	// data, which are never made into values: few bytes of JSON are many in memory.
	partsMax = 65536
	// nestedMax bounds how deep a request is nested.
	nestedMax = 64
)

// measure refuses JSON that would become much larger in memory. It says nothing of
// whether the JSON is valid.
func measure(object []byte) error {
	parts, depth := 0, 0
	dataAt := -1 // depth of the array of data that is passed over
	key := ""
	for i := 0; i < len(object); i++ {
		switch c := object[i]; c {
		case '"':
			end := stringEnd(object, i)
			if dataAt < 0 {
				key = string(object[i:min(end, i+8)])
			}
			i = end - 1
			continue
		case '{', '[':
			depth++
			if dataAt < 0 {
				parts++
				if c == '[' && key == `"data"` {
					dataAt = depth
				}
			}
		case '}', ']':
			if depth == dataAt {
				dataAt = -1
			}
			depth--
		case ':', ' ', '\t', '\n', '\r': // a key stays until its value begins
			if c == ':' {
				parts++
			}
			if dataAt >= 0 && c == ':' {
				return fmt.Errorf("data holds an object")
			}
			continue
		case ',':
			if dataAt < 0 {
				parts++
			}
		}
		key = ""
		if depth > nestedMax {
			return fmt.Errorf("the request is nested deeper than %d", nestedMax)
		}
		if parts > partsMax {
			return fmt.Errorf("the request has more than %d members and elements outside data", partsMax)
		}
	}
	return nil
}

// stringEnd is where a string that begins at i ends, or the end of all.
func stringEnd(data []byte, i int) int {
	for i++; i < len(data) && data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return min(i+1, len(data))
}
