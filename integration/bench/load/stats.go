package load

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

var ctl = &http.Client{Timeout: 10 * time.Second}

// Stats reads the services' control port.
func Stats(addr string) (map[string]any, error) {
	resp, err := ctl.Get("http://" + addr + "/stats")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return nil, fmt.Errorf("control: %s", resp.Status)
	}
	var m map[string]any
	return m, json.NewDecoder(resp.Body).Decode(&m)
}
