// Command guest is the node that the tests of the engine run: it does what its input says.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

func main() {
	var in struct {
		Op     string
		Text   string
		Config struct{ Suffix string }
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		fmt.Fprintln(os.Stderr, "input:", err)
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "op", in.Op)
	switch in.Op {
	case "upper":
		if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"text": strings.ToUpper(in.Text) + in.Config.Suffix}); err != nil {
			os.Exit(3)
		}
	case "spin":
		for n := 0; ; n++ {
			if n < 0 {
				return
			}
		}
	case "closed":
		fmt.Println(`{"error":{"class":"unavailable","message":"the service is closed"}}`)
		os.Exit(1)
	case "refuse":
		fmt.Println(`{"fail":{"status":409,"code":"duplicate","message":"it exists"}}`)
		os.Exit(1)
	default:
		os.Exit(7)
	}
}
