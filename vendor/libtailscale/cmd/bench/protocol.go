package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// What a connection asks of the backend, by its first byte. No exchange needs a
// half-close, so that a server that cannot do one is measured all the same.
const (
	askUpload   = 'u' // blocks follow; answered with their number of bytes
	askDownload = 'd' // four bytes of milliseconds follow; answered with blocks
	askEcho     = 'e' // every byte is answered with itself
)

// A block is the unit of bulk transfer; its first byte says whether another
// follows.
const (
	blockSize = 64 << 10
	blockMore = 0
	blockLast = 1
)

// serveBackend answers one connection and closes it.
func serveBackend(conn net.Conn) error {
	defer conn.Close()
	var ask [1]byte
	if _, err := io.ReadFull(conn, ask[:]); err != nil {
		return err
	}
	switch ask[0] {
	case askUpload:
		total, err := receiveBlocks(conn)
		if err != nil {
			return err
		}
		return binary.Write(conn, binary.BigEndian, total)
	case askDownload:
		var milliseconds uint32
		if err := binary.Read(conn, binary.BigEndian, &milliseconds); err != nil {
			return err
		}
		_, err := sendBlocks(conn, time.Duration(milliseconds)*time.Millisecond)
		return err
	case askEcho:
		return echo(conn)
	}
	return fmt.Errorf("the client asked for %q, which is nothing", ask[0])
}

func echo(conn net.Conn) error {
	buffer := make([]byte, 512)
	for {
		n, err := conn.Read(buffer)
		if n > 0 {
			if _, err := conn.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// sendBlocks sends for a while and returns how many bytes it sent.
func sendBlocks(w io.Writer, duration time.Duration) (int64, error) {
	block := make([]byte, blockSize)
	var total int64
	for end := time.Now().Add(duration); ; {
		last := !time.Now().Before(end)
		block[0] = blockMore
		if last {
			block[0] = blockLast
		}
		n, err := w.Write(block)
		total += int64(n)
		if err != nil || last {
			return total, err
		}
	}
}

// receiveBlocks reads to the end of the last block.
func receiveBlocks(r io.Reader) (int64, error) {
	block := make([]byte, blockSize)
	var total int64
	for {
		n, err := io.ReadFull(r, block)
		total += int64(n)
		if err != nil {
			return total, fmt.Errorf("the transfer ended after %d bytes: %w", total, err)
		}
		if block[0] == blockLast {
			return total, nil
		}
	}
}

// upload sends for a while and waits until the backend has it all.
func upload(conn net.Conn, duration time.Duration) (int64, error) {
	if _, err := conn.Write([]byte{askUpload}); err != nil {
		return 0, err
	}
	sent, err := sendBlocks(conn, duration)
	if err != nil {
		return 0, err
	}
	var received int64
	if err := binary.Read(conn, binary.BigEndian, &received); err != nil {
		return 0, fmt.Errorf("no receipt for %d bytes: %w", sent, err)
	}
	if received != sent {
		return 0, fmt.Errorf("%d bytes were sent, %d arrived", sent, received)
	}
	return received, nil
}

// download has the backend send for a while.
func download(conn net.Conn, duration time.Duration) (int64, error) {
	request := binary.BigEndian.AppendUint32([]byte{askDownload}, uint32(duration.Milliseconds()))
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	return receiveBlocks(conn)
}

// startEcho asks for an echo and sees the first byte come back.
func startEcho(conn net.Conn) error {
	if _, err := conn.Write([]byte{askEcho, 'x'}); err != nil {
		return err
	}
	return awaitEcho(conn)
}

func awaitEcho(conn net.Conn) error {
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return fmt.Errorf("no echo: %w", err)
	}
	if answer[0] != 'x' {
		return fmt.Errorf("the echo of 'x' is %q", answer[0])
	}
	return nil
}
