"""A small DNS server on loopback UDP, written with dnspython: A, AAAA and SRV records that a test may change."""

import contextlib
import socket
import threading
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class DnsServer:
    """Answers from `records`; (name, type) -> record texts. Unknown names are NXDOMAIN.

    Attributes:
        failing: answer SERVFAIL to everything.
    """

    def __init__(self, records: dict[tuple[str, str], list[str]]):
        self.records = records
        self.failing = False
        self.questions: list[tuple[str, str]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # not connected, yet it wakes recvfrom
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                data, sender = self._socket.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            self._socket.sendto(self._answer(dns.message.from_wire(data)).to_wire(), sender)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        question = query.question[0]
        key = (question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype))
        self.questions.append(key)
        if self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif key in self.records:
            answer.answer.append(dns.rrset.from_text_list(question.name, 5, "IN", key[1], self.records[key]))
        elif not any(name == key[0] for name, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer
