package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sort"
	"strings"
	"time"
)

// runGet requests a page as a tailnet client, by way of the admin API of a
// running localtailnet, and prints what curl -v would.
func runGet(ctx context.Context, arguments []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("localtailnet get", flag.ContinueOnError)
	admin := flags.String("admin", os.Getenv("LOCALTAILNET_ADMIN"), "URL of the admin API (admin_url of the ready line; or $LOCALTAILNET_ADMIN)")
	name := flags.String("client", "visitor", "name of the client on the tailnet; it joins when it is not there")
	login := flags.String("login", "", "login of a client that joins (default: the tailnet's owner)")
	method := flags.String("method", "GET", "HTTP method")
	body := flags.String("body", "", "body to send")
	timeout := flags.Duration("timeout", 30*time.Second, "time for the request")
	failStatus := flags.Bool("fail", false, "exit 1 when the status is 400 or more")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if *admin == "" || flags.NArg() != 1 {
		return errors.New("usage: localtailnet get -admin URL https://name.tailnet.ts.net/")
	}
	base := strings.TrimSuffix(*admin, "/") + "/client/" + *name
	if err := postJSON(ctx, base, clientOptions{Login: *login}, &shownNode{}); err != nil {
		return err
	}
	wanted := httpRequest{URL: flags.Arg(0), Method: *method, Body: *body, Timeout: timeout.String()}
	var answer httpAnswer
	if err := postJSON(ctx, base+"/http", wanted, &answer); err != nil {
		return err
	}
	if err := printAnswer(stdout, &wanted, &answer); err != nil {
		return err
	}
	if *failStatus && answer.Status >= 400 {
		return fmt.Errorf("status %d", answer.Status)
	}
	return nil
}

func postJSON(ctx context.Context, url string, body, into any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(encoded))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("admin API: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var refusal struct {
			Error string `json:"error"`
		}
		if err := json.NewDecoder(response.Body).Decode(&refusal); err != nil {
			return fmt.Errorf("admin API: status %d", response.StatusCode)
		}
		return errors.New(refusal.Error)
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("admin API: %w", err)
	}
	return nil
}

func printAnswer(w io.Writer, wanted *httpRequest, answer *httpAnswer) error {
	var out bytes.Buffer
	if who := answer.Client; who != nil {
		fmt.Fprintf(&out, "* client %s, %s (%s)", who.FQDN, who.Login, strings.Join(who.Addresses, ", "))
		if len(who.Tags) > 0 {
			fmt.Fprintf(&out, ", %s", strings.Join(who.Tags, ", "))
		}
		fmt.Fprintln(&out)
	}
	fmt.Fprintf(&out, "* %s -> %s over the tailnet\n", answer.LocalAddress, answer.RemoteAddress)
	if t := answer.TLS; t != nil {
		alpn := t.ALPN
		if alpn == "" {
			alpn = "no ALPN"
		}
		fmt.Fprintf(&out, "* %s, %s, %s, server name %s\n", t.Version, t.Cipher, alpn, t.ServerName)
		fmt.Fprintln(&out, "* certificate chain, verified to the tailnet's root:")
		for i, certificate := range t.VerifiedChain {
			fmt.Fprintf(&out, "*   %d %s\n", i, certificate.Subject)
			if len(certificate.DNSNames) > 0 {
				fmt.Fprintf(&out, "*     names   %s\n", strings.Join(certificate.DNSNames, ", "))
			}
			fmt.Fprintf(&out, "*     issuer  %s\n*     expires %s\n", certificate.Issuer, certificate.NotAfter.Format(time.RFC3339))
		}
	}
	fmt.Fprintf(&out, "> %s %s\n< %s %d %s\n", wanted.Method, wanted.URL, answer.Protocol, answer.Status, http.StatusText(answer.Status))
	names := make([]string, 0, len(answer.Headers))
	for name := range answer.Headers {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		for _, value := range answer.Headers[name] {
			fmt.Fprintf(&out, "< %s: %s\n", name, value)
		}
	}
	fmt.Fprintln(&out, "<")
	body := []byte(answer.Body)
	if answer.BodyBase64 != "" {
		decoded, err := base64.StdEncoding.DecodeString(answer.BodyBase64)
		if err != nil {
			return fmt.Errorf("admin API: body: %w", err)
		}
		body = decoded
	}
	out.Write(body)
	if len(body) > 0 && body[len(body)-1] != '\n' {
		out.WriteByte('\n')
	}
	_, err := w.Write(out.Bytes())
	return err
}
