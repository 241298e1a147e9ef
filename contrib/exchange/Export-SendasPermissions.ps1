#Requires -Version 5.1

<#
.SYNOPSIS
Exports from Exchange Online which mailbox may send as which addresses, for sendas.

.DESCRIPTION
Writes one CSV file for the whole organisation, with the columns Kind, Mailbox and Address:

  Domain   an accepted domain
  Alias    another SMTP address of the mailbox
  SendAs   the primary address of a recipient on which the mailbox has the permission "Send As"

Accepted domains of the types Authoritative and InternalRelay are written: both belong to the
organisation, and Exchange Online lets its mailboxes send from them. ExternalRelay is left out,
because such a domain belongs to somebody else, for whom this organisation only passes mail on.

A security group that has Send As is replaced by its members, and theirs if they are security
groups too. A permission that is denied (AccessControlType Deny) wins over the same one allowed.

Addresses of other kinds (SIP:, SPO:, X500: and so on) are left out. So are recipients that
cannot be found any more, and trustees that are no recipients, such as deleted accounts and
service principals; -Verbose names them.

The script only reads, and expects that Connect-ExchangeOnline was run before, in the same
PowerShell. It replaces the file in one step when it has everything, and leaves the old one
alone when something fails. The rows are sorted, so that two files can be compared.

.PARAMETER Path
The file to write. It is in UTF-8 without a byte order mark.

.PARAMETER Mailbox
The mailboxes as which the relay signs in, by address. Without it: all mailboxes that may use
SMTP AUTH, which a mailbox may if its own setting (Get-CASMailbox, SmtpClientAuthenticationDisabled)
says so or, where it has none, the organisation's (Get-TransportConfig) does.

.EXAMPLE
Connect-ExchangeOnline
.\Export-SendasPermissions.ps1 -Mailbox erp@contoso.com, scan@contoso.com

Signs in, and exports what two mailboxes may do to permissions.csv.

.EXAMPLE
powershell.exe -NoProfile -NonInteractive -Command "& { $ErrorActionPreference = 'Stop'; Connect-ExchangeOnline -AppId 01234567-89ab-cdef-0123-456789abcdef -CertificateThumbprint 0123456789ABCDEF0123456789ABCDEF01234567 -Organization contoso.onmicrosoft.com -ShowBanner:$false; try { C:\sendas\Export-SendasPermissions.ps1 -Path C:\sendas\permissions.csv } finally { Disconnect-ExchangeOnline -Confirm:$false } }"

The command of a scheduled task that signs in as an app, by a certificate from the store of the
task's user. Write it into a .ps1 file of its own where quoting gets in the way.

.OUTPUTS
One line that says what was written.

.NOTES
Needs the module ExchangeOnlineManagement 3.0 or newer. See README.md for the cmdlets and rights.

.LINK
https://learn.microsoft.com/powershell/exchange/app-only-auth-powershell-v2
#>
[CmdletBinding()]
[OutputType([string])]
param(
    [ValidateNotNullOrEmpty()]
    [string] $Path = './permissions.csv',

    [ValidateNotNullOrEmpty()]
    [string[]] $Mailbox
)

Set-StrictMode -Version Latest
# This does not reach into the functions of a module, so every cmdlet of Exchange Online gets
# -ErrorAction Stop as well: a failed look-up must not look like a permission that is gone.
$ErrorActionPreference = 'Stop'

# Names in Exchange are compared without regard to case, and not by the rules of a language.
$ignoreCase = [System.StringComparer]::OrdinalIgnoreCase

# Primary addresses of the chosen mailboxes, by every name under which a trustee may appear.
$chosen = [System.Collections.Hashtable]::new($ignoreCase)
# What Get-EXORecipient said, by name: an array of the recipient's address and type, or $false.
$recipients = [System.Collections.Hashtable]::new($ignoreCase)
# The chosen mailboxes behind a trustee, by the trustee's name: an array of primary addresses.
$trustees = [System.Collections.Hashtable]::new($ignoreCase)

# Get-Property returns a property, or $null where the object has none; strict mode would stop.
function Get-Property {
    param($InputObject, [string] $Name)
    $property = $InputObject.PSObject.Properties[$Name]
    if ($null -ne $property) { $property.Value }
}

# Test-Address tells whether sendas reads the address: in ASCII, without quotes, at most 64
# characters in front of the @, and a domain of letters, digits and hyphens behind it.
function Test-Address {
    param([string] $Address)
    $atom = '[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+'
    $label = '[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?'
    $Address -cmatch ('\A(?=[^@]{1,64}@)' + $atom + '(\.' + $atom + ')*@(' + $label + '\.)+(?=[A-Za-z])' + $label + '\z')
}

# Test-NotFound tells "there is no such object" from failures that may pass.
function Test-NotFound {
    param($ErrorRecord)
    ($ErrorRecord.Exception.Message + ' ' + $ErrorRecord.FullyQualifiedErrorId) -match "ManagementObjectNotFound|couldn't be found|ResourceNotFound"
}

# Assert-Session stops with a sentence where the script could only fail.
function Assert-Session {
    if ($null -eq (Get-Command -Name Get-ConnectionInformation -ErrorAction SilentlyContinue)) {
        throw 'The module ExchangeOnlineManagement 3.0 or newer is missing. Type: Install-Module ExchangeOnlineManagement'
    }
    $sessions = @(Get-ConnectionInformation -ErrorAction Stop | Where-Object {
            (Get-Property $_ 'State') -eq 'Connected' -and (Get-Property $_ 'IsEopSession') -ne $true
        })
    if ($sessions.Count -eq 0) {
        throw 'There is no session with Exchange Online. Type: Connect-ExchangeOnline'
    }
    $needed = @('Get-AcceptedDomain', 'Get-DistributionGroupMember', 'Get-EXOMailbox', 'Get-EXORecipient', 'Get-EXORecipientPermission')
    if (-not $Mailbox) { $needed += @('Get-CASMailbox', 'Get-TransportConfig') }
    $missing = @($needed | Where-Object { $null -eq (Get-Command -Name $_ -ErrorAction SilentlyContinue) })
    if ($missing.Count -gt 0) {
        throw ('This session has no {0}. Either the account lacks the rights (README.md), or Connect-ExchangeOnline was run with -Prefix or -CommandName.' -f ($missing -join ', '))
    }
}

# Get-Domain returns the names of the accepted domains that are the organisation's own.
function Get-Domain {
    foreach ($domain in @(Get-AcceptedDomain -ErrorAction Stop)) {
        $name = [string] $domain.DomainName
        $type = [string] $domain.DomainType
        if ($type -notin @('Authoritative', 'InternalRelay')) {
            Write-Verbose ('{0} is left out: its type is {1}' -f $name, $type)
        }
        elseif (-not (Test-Address ('x@' + $name))) {
            Write-Warning ('{0} is left out: sendas cannot use such a name' -f $name)
        }
        else {
            $name
        }
    }
}

# Get-SmtpMailbox returns the mailboxes that may use SMTP AUTH.
function Get-SmtpMailbox {
    $organisation = (Get-TransportConfig -ErrorAction Stop).SmtpClientAuthenticationDisabled
    $disabled = [System.Collections.Generic.HashSet[string]]::new($ignoreCase)
    foreach ($settings in @(Get-CASMailbox -ResultSize Unlimited -ErrorAction Stop)) {
        $own = Get-Property $settings 'SmtpClientAuthenticationDisabled'
        if ($null -eq $own) { $own = $organisation }
        if ($own -eq $true) { [void] $disabled.Add([string] $settings.Guid) }
    }
    foreach ($candidate in @(Get-EXOMailbox -ResultSize Unlimited -ErrorAction Stop)) {
        if ([string] $candidate.RecipientTypeDetails -ne 'DiscoveryMailbox' -and -not $disabled.Contains([string] $candidate.Guid)) {
            $candidate
        }
    }
}

# Get-ChosenMailbox returns the mailboxes to export.
function Get-ChosenMailbox {
    if (-not $Mailbox) { return Get-SmtpMailbox }
    # With powershell.exe -File the whole list arrives as one word.
    foreach ($name in @($Mailbox -split '[,;\s]+' | Where-Object { $_ })) {
        try {
            $found = @(Get-EXOMailbox -Identity $name -ErrorAction Stop)
        }
        catch {
            if (-not (Test-NotFound $_)) { throw }
            throw ('No mailbox is called {0}. Look at the spelling after -Mailbox.' -f $name)
        }
        if ($found.Count -ne 1) {
            throw ('{0} mailboxes are called {1}. Write the primary address after -Mailbox.' -f $found.Count, $name)
        }
        $found[0]
    }
}

# Get-SmtpAddress returns the SMTP addresses of a mailbox, the primary one as well.
function Get-SmtpAddress {
    param($Object)
    foreach ($proxy in @(Get-Property $Object 'EmailAddresses')) {
        $text = [string] $proxy
        if ($text -like 'smtp:*') { $text.Substring('smtp:'.Length) }
    }
}

# Resolve-Recipient returns the primary address and the type of a recipient, or nothing where
# there is none of that name, or more than one.
function Resolve-Recipient {
    param([string] $Name)
    if (-not $recipients.ContainsKey($Name)) {
        $recipients[$Name] = $false
        try {
            $found = @(Get-EXORecipient -Identity $Name -Properties PrimarySmtpAddress, RecipientTypeDetails -ErrorAction Stop)
        }
        catch {
            if (-not (Test-NotFound $_)) { throw }
            $found = @()
        }
        if ($found.Count -eq 1) {
            $address = [string] (Get-Property $found[0] 'PrimarySmtpAddress')
            $type = [string] (Get-Property $found[0] 'RecipientTypeDetails')
            if ($address) { $recipients[$Name] = @($address, $type) }
        }
        elseif ($found.Count -gt 1) {
            Write-Warning ('{0} recipients are called "{1}"; permissions of and on that name are left out' -f $found.Count, $Name)
        }
        else {
            Write-Verbose ('"{0}" is no recipient' -f $Name)
        }
    }
    if ($recipients[$Name] -is [array]) { $recipients[$Name] }
}

# Add-GroupMember adds the chosen mailboxes in a security group to the set. Only security groups
# hand permissions on; each is visited once, as groups may contain each other.
function Add-GroupMember {
    param([string] $Group, $Into, $Visited)
    if (-not $Visited.Add($Group)) { return }
    foreach ($member in @(Get-DistributionGroupMember -Identity $Group -ResultSize Unlimited -ErrorAction Stop)) {
        $address = [string] (Get-Property $member 'PrimarySmtpAddress')
        if (-not $address) { continue }
        if ([string] (Get-Property $member 'RecipientTypeDetails') -eq 'MailUniversalSecurityGroup') {
            Add-GroupMember -Group $address -Into $Into -Visited $Visited
        }
        elseif ($chosen.ContainsKey($address)) {
            [void] $Into.Add($chosen[$address])
        }
    }
}

# Resolve-Trustee returns the primary addresses of the chosen mailboxes for which a trustee stands.
function Resolve-Trustee {
    param([string] $Name)
    if ($chosen.ContainsKey($Name)) { return $chosen[$Name] }
    if (-not $trustees.ContainsKey($Name)) {
        $members = [System.Collections.Generic.HashSet[string]]::new($ignoreCase)
        $recipient = @(Resolve-Recipient $Name)
        if ($recipient.Count -eq 2) {
            if ($recipient[1] -eq 'MailUniversalSecurityGroup') {
                Add-GroupMember -Group $recipient[0] -Into $members -Visited ([System.Collections.Generic.HashSet[string]]::new($ignoreCase))
            }
            elseif ($chosen.ContainsKey($recipient[0])) {
                [void] $members.Add($chosen[$recipient[0]])
            }
        }
        $trustees[$Name] = @($members)
    }
    $trustees[$Name]
}

# Get-SendAsRow returns the rows of all Send As permissions of the chosen mailboxes.
function Get-SendAsRow {
    $allowed = [System.Collections.Generic.HashSet[string]]::new($ignoreCase)
    $denied = [System.Collections.Generic.HashSet[string]]::new($ignoreCase)
    foreach ($permission in @(Get-EXORecipientPermission -ResultSize Unlimited -ErrorAction Stop)) {
        $trustee = [string] $permission.Trustee
        # SELF is each mailbox itself; a bare SID is an account that was deleted.
        if (-not $trustee -or $trustee -like 'NT AUTHORITY\*' -or $trustee -eq 'NULL SID' -or $trustee -like 'S-1-*') { continue }
        if (@($permission.AccessRights | ForEach-Object { [string] $_ }) -notcontains 'SendAs') { continue }
        $senders = @(Resolve-Trustee $trustee)
        if ($senders.Count -eq 0) { continue }
        $recipient = @(Resolve-Recipient ([string] $permission.Identity))
        if ($recipient.Count -ne 2) { continue }
        if (-not (Test-Address $recipient[0])) {
            Write-Warning ('Send As on "{0}" is left out: it has no address that sendas can use' -f $permission.Identity)
            continue
        }
        foreach ($sender in $senders) {
            if ($sender -eq $recipient[0]) { continue }
            $row = 'SendAs,{0},{1}' -f $sender, $recipient[0]
            if ([string] (Get-Property $permission 'AccessControlType') -eq 'Deny') { [void] $denied.Add($row) }
            else { [void] $allowed.Add($row) }
        }
    }
    $allowed.ExceptWith($denied)
    $allowed
}

# Write-Whole replaces the file in one step: nobody ever reads half of it.
function Write-Whole {
    param([string] $Target, [string] $Text)
    $temporary = '{0}.{1}.new' -f $Target, [System.IO.Path]::GetRandomFileName()
    try {
        [System.IO.File]::WriteAllText($temporary, $Text, [System.Text.UTF8Encoding]::new($false))
        if ([System.IO.File]::Exists($Target)) {
            # PowerShell makes "" of $null, which would be the name of a backup file.
            [System.IO.File]::Replace($temporary, $Target, [System.Management.Automation.Language.NullString]::Value)
        }
        else {
            [System.IO.File]::Move($temporary, $Target)
        }
    }
    finally {
        if ([System.IO.File]::Exists($temporary)) { [System.IO.File]::Delete($temporary) }
    }
}

Assert-Session
# .NET has a current folder of its own, so the path is made absolute by PowerShell.
$target = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Path)
$folder = [System.IO.Path]::GetDirectoryName($target)
if (-not [System.IO.Directory]::Exists($folder)) {
    throw ('There is no folder {0}. Create it, or write another -Path.' -f $folder)
}

# Sorted sets, so that the file is the same as long as the permissions are.
$domainRows = [System.Collections.Generic.SortedSet[string]]::new($ignoreCase)
$aliasRows = [System.Collections.Generic.SortedSet[string]]::new($ignoreCase)
$sendAsRows = [System.Collections.Generic.SortedSet[string]]::new($ignoreCase)

Write-Verbose 'Reading accepted domains'
foreach ($name in @(Get-Domain)) { [void] $domainRows.Add('Domain,,' + $name) }
if ($domainRows.Count -eq 0) {
    throw 'Exchange Online showed no accepted domain. The account may lack the role View-Only Configuration.'
}

Write-Verbose 'Reading mailboxes'
$mailboxes = @(Get-ChosenMailbox)
$count = 0
foreach ($object in $mailboxes) {
    $primary = [string] $object.PrimarySmtpAddress
    if (-not (Test-Address $primary)) {
        Write-Warning ('The mailbox "{0}" is left out: sendas cannot use its address' -f $primary)
        continue
    }
    $count++
    $addresses = @(Get-SmtpAddress $object)
    foreach ($key in @($primary, [string] (Get-Property $object 'UserPrincipalName')) + $addresses) {
        if ($key) { $chosen[$key] = $primary }
    }
    foreach ($address in $addresses) {
        if ($address -eq $primary) { continue }
        if (Test-Address $address) { [void] $aliasRows.Add(('Alias,{0},{1}' -f $primary, $address)) }
        else { Write-Verbose ('The address "{0}" of {1} is left out: sendas cannot use it' -f $address, $primary) }
    }
}
if ($count -eq 0) {
    throw 'No mailbox may use SMTP AUTH. Allow it (Set-CASMailbox -SmtpClientAuthenticationDisabled $false), or name mailboxes with -Mailbox.'
}

Write-Verbose 'Reading Send As permissions; this takes a while in a large organisation'
foreach ($row in @(Get-SendAsRow)) { [void] $sendAsRows.Add($row) }

$lines = @('Kind,Mailbox,Address') + @($domainRows) + @($aliasRows) + @($sendAsRows)
Write-Whole -Target $target -Text (($lines -join "`n") + "`n")
'{0}: {1} domains, {2} mailboxes, {3} aliases, {4} Send As permissions' -f $target, $domainRows.Count, $count, $aliasRows.Count, $sendAsRows.Count
